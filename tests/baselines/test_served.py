"""Systems over served models that reply in every way: statuses, what is lost, what extraction answers for, secrets."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baselines.parts.models
from baselines import bm25, hipporag, memory_store
from baselines.base import CellStatus, Resources
from baselines.memory_agent import MemoryAgent
from baselines.memory_agent import Params as AgentParams
from baselines.memory_store import ModelAgent
from baselines.parts.embedded import EmbeddedCorpus
from baselines.parts.endpoint import ModelParams, ServedEmbedder, ServedReader, ServedReranker
from baselines.parts.extraction import LEFT_OUT, NO_LIST, ModelExtractor, find_list, is_triple
from baselines.parts.models import ModelReference, model_digest
from baselines.parts.phrases import PhraseEncoder, Phrases
from baselines.parts.reading import TimeLimit
from msa_base.errors import UserError
from msa_base.records import CorpusView, Document, Generation, Question
from msa_base.replies import Losses
from msa_base.specs import SystemSpec
from msa_base.stage_records import RunRecord
from msa_base.tables import read_predictions, write_json
from tests.baselines.conftest import Workplace
from tests.baselines.test_hipporag import Scripted
from tests.baselines.test_retrieval import open_dense
from tests.canned import JSON, Canned, canned, chat

importlib.import_module("openai")  # once, and not by each process that a command forks
SECRET = "sk-planted/+0123456789abcdef"
DOCUMENTS = [Document(number, f"text {number}", 3) for number in range(3)]


@pytest.fixture
def real_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("parts.reading", "long_context", "hipporag", "memory_agent"):
        monkeypatch.setattr(f"baselines.{module}.open_reader", baselines.parts.models.open_reader)


def referred(server: Canned, directory: Path, **params: Any) -> ModelReference:
    return ModelReference(ModelParams(server.url, "m", **{"retries": 0, "timeout_s": 5.0, **params}), directory, 1)


def reference(server: Canned, directory: Path, **params: Any) -> Path:
    """A model directory that refers to a server."""
    content = {"base_url": server.url, "model": "m", "retries": 0, **params}
    write_json({"kind": "endpoint", "params": content}, directory / "reference.json")
    return directory


def resources(model: Path, index: Path | None = None, **changes: Any) -> Resources:
    return Resources(**{"model": model, "index": index, "index_model": None, "threads": 1, "seed": 0, **changes})


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Rome? No."}]}
REPLIES = {  # question -> reply, text, status
    "plain": (chat("Paris"), "Paris", "ok"),
    "thinks": (chat("<think>Rome? No.</think>\n\nParis"), "Paris", "ok"),
    "parts": (chat([THOUGHT, {"type": "text", "text": "Paris"}]), "Paris", "ok"),
    "null": (chat(None, "length", reasoning_content="It could be Rome. Or"), "", "ended_in_reasoning"),
    "cut": (chat("<think>It could be Rome. Or", "length"), "", "ended_in_reasoning"),
    "empty": (chat(""), "", "empty_reply"),
    "filter": (chat("Par", "content_filter"), "Par", "filtered"),
}


@pytest.mark.usefixtures("real_readers")
def test_an_answer_bears_the_status_of_its_reply(tmp_path: Path) -> None:
    def reply(body: dict) -> tuple[int, Any]:
        return 200, next(REPLIES[name][0] for name in REPLIES if f"is {name}?" in body["messages"][0]["content"])

    with canned(reply) as server:
        system = bm25.make(SystemSpec("bm25", ""), resources(reference(server, tmp_path)))
        questions = [Question(name, f"What is {name}?", "", 16) for name in REPLIES]
        answers = system.answer(questions, CorpusView(DOCUMENTS, {}))
        assert {answer.question_id: (answer.text, answer.status) for answer in answers} == {
            name: (text, status) for name, (_, text, status) in REPLIES.items()
        }
        usage = system.pop_usage()["reader"]
    assert usage["lost"] == {"ended_in_reasoning": 2, "empty_reply": 1, "filtered": 1}
    assert usage["repaired"] == {"thinking_removed": 2, "parts_joined": 1}


TOO_LONG = [
    (400, {"object": "error", "code": 400, "type": "BadRequestError",
           "message": "The decoder prompt (length 10127) is longer than the maximum model length of 8192."}),
    (400, [{"error": {"code": 400, "message": "The input token count (1200000) exceeds the maximum number of tokens"
                                              " allowed (1048576)."}}]),
    (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs`"
                    " tokens and 64 `max_new_tokens`", "error_type": "validation"}),
    (422, {"detail": [{"msg": "prompt is too long"}]}),
    (413, b"<html>Request Entity Too Large</html>"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "content"), TOO_LONG)
def test_a_prompt_beyond_the_window_ends_the_cell_and_not_the_run(tmp_path: Path, status: int, content: Any) -> None:
    with canned(lambda body: (status, content)) as server, pytest.raises(CellStatus) as raised:
        ServedReader(referred(server, tmp_path)).generate(["long"], 4)
    assert raised.value.status == "unsupported_context"


@pytest.mark.parametrize("embedding", [[None, None], [float("nan"), 1.0], [0.0, 0.0], "text"])
def test_an_embedding_that_is_none_never_ranks(tmp_path: Path, embedding: Any) -> None:
    content = {"data": [{"index": 0, "embedding": embedding}], "usage": {"prompt_tokens": 1}}
    with canned(lambda body: (200, content)) as server, pytest.raises(UserError, match=r"model m: .*embedding"):
        ServedEmbedder(referred(server, tmp_path)).documents(DOCUMENTS[:1])


@pytest.mark.parametrize("rows", [[(2, 0.9), (0, 0.5)], [(2, 0.9), (0, 0.5), (0, 0.4)], [(0, 1), (1, None), (2, 1)]])
def test_a_rerank_that_does_not_score_each_document_is_one_message(tmp_path: Path, rows: list) -> None:
    content = {"results": [{"index": place, "relevance_score": score} for place, score in rows]}
    with canned(lambda body: (200, content)) as server:
        with pytest.raises(UserError, match="not what rerank should give"):
            ServedReranker(referred(server, tmp_path)).scores([("q", document) for document in DOCUMENTS])
        assert server.asked[0][1]["top_n"] == 3  # a server of its own mind gives fewer


def test_an_index_and_a_model_of_another_width_are_told_apart(tmp_path: Path) -> None:
    open_dense(DOCUMENTS, tmp_path / "index")
    with canned(lambda body: (200, {"data": [{"index": 0, "embedding": [1.0, 2.0]}]})) as server:
        corpus = EmbeddedCorpus(resources(tmp_path, tmp_path / "index"))
        corpus.embedder = ServedEmbedder(referred(server, tmp_path))
        with pytest.raises(UserError, match="vectors of 24 numbers, its model now gives 2"):
            corpus.queries(["Who?"])


@pytest.mark.usefixtures("real_readers")
def test_a_memory_agent_keeps_its_memory_where_a_reply_holds_none(tmp_path: Path) -> None:
    replies = [chat("a b"), chat("<think>so", "length"), chat("<think>now</think> a b c"), chat("Paris")]
    with canned(lambda body: (200, replies[len(server.asked) - 1])) as server:
        agent = MemoryAgent(AgentParams(chunk_tokens=3), resources(reference(server, tmp_path)))
        (answer,) = agent.answer([Question("q", "Who?", "", 5)], CorpusView(DOCUMENTS, {}))
        assert "Memory: a b\n" in server.prompts[1] and "Memory: a b\n" in server.prompts[2]
        assert "a b c" in server.prompts[3] and "now" not in server.prompts[3]
    assert (answer.text, answer.status, answer.rounds) == ("Paris", "ended_in_reasoning", 4)


# --- memory store


def stored(operations: list, *replies: str) -> tuple[dict[int, str], ModelAgent]:
    """The store of two documents of two facts each after given operations."""
    facts = [["Ann lives in Rome.", "Ann has a dog."], ["Ann lives in Oslo.", "Ann has a cat."]]
    model = Scripted(*replies, *(json.dumps({"operations": listed}) for listed in operations))
    agent = ModelAgent(model, memory_store.Params(), TimeLimit(None))
    documents = [(Document(number, "t", 1), facts[number]) for number in range(len(operations) + len(replies))]
    return agent.store(documents, Phrases(PhraseEncoder(None, words=True))).texts, agent


ADDED = [{"fact": 0, "event": "ADD"}, {"fact": 1, "event": "ADD"}]


@pytest.mark.parametrize(
    ("change", "repaired"),
    [
        ({}, 0),
        ({"fact": "0"}, 1),
        ({"fact": " 0 "}, 1),
        ({"fact": 0.0}, 1),
        ({"event": " update "}, 0),
        ({"memory": "0"}, 1),
        ({"memory": 0.0}, 1),
    ],
)
def test_numbers_as_text_are_read(change: dict, repaired: int) -> None:
    update = {"fact": 0, "event": "UPDATE", "memory": 0, "text": "Ann moved to Oslo.", **change}
    texts, agent = stored([ADDED, [update, {"fact": 1, "event": "NONE"}]])
    assert texts == {0: "Ann moved to Oslo.", 1: "Ann has a dog."}
    assert (agent.failures, agent.losses.repaired["numbers_as_text"]) == (0, repaired)


@pytest.mark.parametrize(
    "change",
    [
        {"fact": None}, {"fact": "first"}, {"fact": True}, {"fact": 7}, {"fact": -1}, {"fact": 0.5},
        {"fact": "9" * 5000}, {"fact": [0]}, {"event": "MOVE"}, {"event": None}, {"memory": 7}, {"memory": "x"},
        {"memory": None}, {"memory": False},
    ],
)  # fmt: skip
def test_an_operation_that_cannot_be_done_is_counted(change: dict) -> None:
    update = {"fact": 0, "event": "UPDATE", "memory": 0, "text": "x", **change}
    texts, agent = stored([ADDED, [update, {"fact": 1, "event": "NONE"}, "nonsense"]])
    assert texts == {0: "Ann lives in Rome.", 1: "Ann has a dog."}
    assert agent.losses.lost["operations_left_undone"] == 2
    assert agent.losses.lost["facts_without_operation"] == ("memory" not in change)


def test_facts_that_a_model_forgot_are_counted() -> None:
    texts, agent = stored([ADDED[:1]], "I would rather not.")
    assert texts == {0: "Ann lives in Oslo."}
    assert agent.losses.lost == {NO_LIST: 1, "facts_without_operation": 3}
    extracting = ModelAgent(Scripted('{"facts": ["A.", 7, null, " "]}', "no"), memory_store.Params(), TimeLimit(None))
    assert extracting.extract(["x", "y"]) == [["A."], []]
    for _ in range(2):  # each view counts what its documents lost, also where they were read before
        extracting.count_extraction(["x", "y", "x"])
        assert extracting.losses.pop_usage() == {"lost": {LEFT_OUT: 3, NO_LIST: 1}, "repaired": {}}


@given(
    st.lists(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), st.lists), max_size=4)
)
def test_any_operations_are_done_or_counted(operations: list) -> None:
    texts, agent = stored([[{"fact": item, "event": "ADD"} for item in operations]])
    done = sum(texts.values().__len__() for _ in range(1))
    assert done + agent.losses.lost["operations_left_undone"] == len(operations)


# --- JSON in replies


def test_json_is_never_taken_from_thinking() -> None:
    draft = '<think>Maybe {"facts": ["draft"]}?</think>\n{"facts": ["Ann lives in Rome."]}'
    assert find_list(draft, "facts") == ["Ann lives in Rome."]
    assert find_list('<think>{"facts": ["draft"]}', "facts") is None
    assert find_list('{"facts": ["draft"]}</think> none', "facts") is None
    assert find_list('{"facts":' * 50_000, "facts") is None


@given(st.lists(JSON | st.lists(st.text(max_size=3) | st.integers(), min_size=3, max_size=3), max_size=4))
def test_any_triples_are_stated_or_counted(triples: list) -> None:
    extractor = ModelExtractor(Scripted('{"entities": []}', json.dumps({"triples": triples})), None)
    (facts,) = extractor.facts(["text"])
    losses = Losses()
    extractor.count_losses(["text"], losses)
    distinct = {tuple(map(str, triple)) for triple in triples if is_triple(triple)}
    assert len(facts) == len(distinct)
    assert losses.lost[LEFT_OUT] == sum(not is_triple(triple) for triple in triples)


@given(st.text(alphabet='{}[]":,aft cs0</think>', max_size=60))
def test_any_text_has_a_list_or_none(text: str) -> None:
    found = find_list(text, "facts")
    assert found is None or isinstance(found, list)


class Named(Scripted):
    """A scripted model with an identity."""

    def __init__(self, identity: Any, *replies: str) -> None:
        super().__init__(*replies)
        self.identity = identity


def said(triple: list) -> tuple[str, str]:
    return '{"entities": ["Ann"]}', json.dumps({"triples": [triple]})


def test_an_extraction_answers_for_its_model(tmp_path: Path) -> None:
    cache, rome, oslo = tmp_path / "extraction.jsonl", ["ann", "in", "rome"], ["ann", "in", "oslo"]
    for name, triple in (("weak", rome), ("strong", oslo)):
        model = Named(name, *said(triple))
        for _ in range(2):
            facts = ModelExtractor(model, cache).facts(["Ann moved."])
            assert [fact.triple for fact in facts[0]] == [tuple(triple)]
        assert len(model.asked) == 2


def test_another_served_model_under_the_same_entry_is_asked_anew(tmp_path: Path) -> None:
    def reply(body: dict) -> tuple[int, Any]:
        content = {"entities": ["Ann"], "triples": [["ann", "in", body["model"]]]}
        return 200, chat(json.dumps(content))

    with canned(reply) as server:
        for changes in ({"model": "weak"}, {"model": "strong"}, {"model": "strong", "revision": "2"}):
            directory = reference(server, tmp_path / "llm", **changes)
            reader = baselines.parts.models.open_reader(directory, 1)
            asked = len(server.asked)
            (facts,) = ModelExtractor(reader, directory / "extraction.jsonl").facts(["Ann moved."])
            assert facts[0].triple[2] == changes["model"] and len(server.asked) == asked + 2


def test_a_sampling_models_replicates_extract_apart(tmp_path: Path) -> None:
    with canned(lambda body: (200, chat('{"entities": [], "triples": []}'))) as server:
        for seed in (0, 1, 1):
            reader = ServedReader(referred(server, tmp_path, temperature=0.7))
            reader.set_replicate(seed)
            ModelExtractor(reader, tmp_path / "extraction.jsonl").facts(["Ann moved."])
        assert [body["seed"] for _, body, _ in server.asked] == [0, 0, 1, 1]


@pytest.mark.parametrize("damage", [b'{"passage": "cut sh', b"\xff\xfe", b"[1]", b"null"])
def test_a_damaged_extraction_is_asked_for_again_with_a_word(tmp_path: Path, damage: bytes, capsys: Any) -> None:
    cache = tmp_path / "extraction.jsonl"
    first = ModelExtractor(Scripted(*said(["ann", "in", "rome"])), cache).facts(["one"])
    whole = cache.read_bytes()
    cache.write_bytes(whole.replace(b"rome", b"oslo"))
    assert ModelExtractor(Scripted(*said(["ann", "in", "rome"])), cache).facts(["one"]) == first
    cache.write_bytes(whole + damage)
    assert ModelExtractor(Scripted(), cache).facts(["one"]) == first
    ModelExtractor(Scripted(*said(["bob", "in", "bonn"])), cache).facts(["two"])  # behind the damaged line
    assert ModelExtractor(Scripted(), cache).facts(["two"])[0][0].triple == ("bob", "in", "bonn")
    assert capsys.readouterr().out.count("1 lines are not as they were written") == 4


def test_what_extraction_lost_is_counted_in_every_view(tmp_path: Path) -> None:
    open_dense(DOCUMENTS, tmp_path)
    replies = ["no", "no", '{"entities": []}', '{"entities": []}', '{"triples": [["a", "b"], ["a", "b", "c"]]}', "{}"]
    system = hipporag.HippoRAG(
        hipporag.Params(phrases="words"), Resources(None, tmp_path, None, 1, 0), Scripted(*replies, "{}")
    )
    for _ in range(2):
        system.ingest(CorpusView(DOCUMENTS, {}))
        assert system.models["facts"].pop_usage()["lost"] == Counter({NO_LIST: 4, LEFT_OUT: 1})


# --- a local model that changes, and cells


def test_a_model_in_a_directory_here_is_known_by_its_content(tmp_path: Path) -> None:
    weights = tmp_path / "bert" / "model.safetensors"
    weights.parent.mkdir()
    write_json({"kind": "sentence_encoder", "params": {"name": str(weights.parent)}}, tmp_path / "reference.json")
    digests = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        digests.append(model_digest(tmp_path))
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.usefixtures("real_readers")
def test_a_cell_counts_what_its_model_lost_and_holds_no_secret(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    for name in ("MY_SERVER", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, f"{name}-{SECRET}")
    key, texts = f"MY_SERVER-{SECRET}", ["<think>so</think> a", "", f"my key is MY_SERVER-{SECRET}"]

    def reply(body: dict) -> tuple[int, Any]:
        if len(server.asked) == 3:
            return 500, {"error": {"message": f"Bearer {key} is broken"}}
        return 200, {**chat(texts[len(server.asked) % 3]), "debug": {"authorization": f"Bearer {key}"}}

    with canned(reply) as server:
        params = {"api_key_env": "MY_SERVER", "retries": 0, "parallel": 1}
        reference(server, workplace.paths.model("reader"), **params)
        assert workplace.run("closed_book") == 2
        assert workplace.run("closed_book") == 0
    cell = workplace.paths.cell("closed_book", "needles", "1K", 0)
    record = RunRecord.open(cell / "run.json")
    statuses = Counter(answer.status for answer in read_predictions(cell / "predictions.jsonl"))
    assert record.failures == statuses["empty_reply"] == record.usage["reader"]["lost"]["empty_reply"] > 0
    assert record.usage["reader"]["repaired"]["thinking_removed"] > 0
    files = [path.read_bytes() for path in workplace.results.rglob("*") if path.is_file()]
    said = capfd.readouterr()
    assert "Bearer $MY_SERVER is broken" in said.err and len(files) > 10
    for name in ("MY_SERVER", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        assert not any(f"{name}-{SECRET[:12]}" in text for text in said)
        assert not any(f"{name}-{SECRET[:12]}".encode() in content for content in files)


def test_a_local_reader_takes_thinking_away_too() -> None:
    from baselines.parts.reading import ReaderInput, read_answer

    generation = Generation("<think>Rome?", 5, 3, 0.1, 0.2)
    answer = read_answer(Question("q", "Who?", "", 8), ReaderInput([]), generation)
    assert (answer.text, answer.status) == ("", "ended_in_reasoning")
    assert np.isfinite(answer.total_s)
