"""The endpoint against a real server on loopback: replies, retries, limits, what is kept, what is counted, bad
servers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baselines.parts.models
from baselines import bm25
from baselines.base import CellStatus, Resources
from baselines.long_context import LongContext
from baselines.long_context import Params as LongParams
from baselines.parts.endpoint import ModelParams, ServedEmbedder, ServedReader, ServedReranker
from baselines.parts.models import ModelReference
from msa_base import prompts
from msa_base.endpoint import Endpoint
from msa_base.errors import UserError
from msa_base.records import Document
from msa_base.specs import EndpointSpec, SystemSpec
from msa_base.tables import write_json
from tests.baselines.conftest import make_corpus, make_view, sentence
from tests.baselines.serving import Server, make_checkpoint, serving

PROMPTS = ["bada kolo what", "mine supi", "reda"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model on disk."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(checkpoint: Path) -> Iterator[Server]:
    """It, served."""
    with serving(Server(checkpoint)) as running:
        yield running


def opened(server: Server, directory: Path, **params: Any) -> Endpoint:
    """The endpoint of a server, in a hurry."""
    return Endpoint(EndpointSpec(server.url, "small", **{"retries": 2, "timeout_s": 20.0, **params}), directory)


def test_replies_are_the_models_own_in_order_with_their_tokens(server: Server, tmp_path: Path) -> None:
    expected = server.reader.generate(PROMPTS, 6)
    found = opened(server, tmp_path).chat(PROMPTS, 6)
    assert [(r.text, r.input_tokens, r.output_tokens, r.truncated) for r in found] == [
        (g.text, g.input_tokens, g.output_tokens, g.truncated) for g in expected
    ]
    assert len({reply.text for reply in found}) > 1


def test_an_equal_request_is_answered_from_disk(server: Server, tmp_path: Path) -> None:
    first = opened(server, tmp_path).chat(PROMPTS * 2, 6)
    assert len(server.requests) == len(PROMPTS)
    again = opened(server, tmp_path)
    assert again.chat(PROMPTS * 2, 6) == first  # times included
    assert len(server.requests) == len(PROMPTS)
    usage = again.pop_usage()
    assert usage["kept"] == len(PROMPTS) and usage["requests"] == usage["input_tokens"] == 0
    again.chat(PROMPTS[:1], 7)
    opened(server, tmp_path, temperature=0.5).chat(PROMPTS[:1], 6)
    opened(server, tmp_path, body={"seed": 1}).chat(PROMPTS[:1], 6)
    assert len(server.requests) == len(PROMPTS) + 3


def test_what_is_sent_is_what_the_entry_says(server: Server, tmp_path: Path) -> None:
    opened(server, tmp_path, temperature=0.7, top_p=0.95, body={"seed": 3}).chat(["bada"], 4)
    sent = {"model": "small", "messages": [{"role": "user", "content": "bada"}]}
    assert server.requests == [
        ("chat/completions", {**sent, "temperature": 0.7, "top_p": 0.95, "max_tokens": 4, "seed": 3})
    ]


def test_tokens_and_cost_are_counted(server: Server, tmp_path: Path) -> None:
    endpoint = opened(server, tmp_path, input_usd=2.0, output_usd=8.0)
    replies = endpoint.chat(PROMPTS, 6)
    read, written = (sum(getattr(r, name) for r in replies) for name in ("input_tokens", "output_tokens"))
    usage = endpoint.pop_usage()
    assert (usage["requests"], usage["input_tokens"], usage["output_tokens"]) == (len(PROMPTS), read, written)
    assert usage["cost_usd"] == pytest.approx((2 * read + 8 * written) / 1e6)
    assert endpoint.pop_usage()["requests"] == 0
    assert opened(server, tmp_path).pop_usage()["cost_usd"] is None  # no price, no cost


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.trouble = [status]
    endpoint = opened(server, tmp_path)
    assert endpoint.chat(PROMPTS[:1], 6)[0].text == server.reader.generate(PROMPTS[:1], 6)[0].text
    assert len(server.requests) == 2 and endpoint.pop_usage()["retries"] == 1


def test_a_server_that_goes_on_failing_is_one_message_and_replies_are_kept(server: Server, tmp_path: Path) -> None:
    server.trouble = [None, 500, 500]
    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+/v1: model small: the server answers 500"):
        opened(server, tmp_path, retries=1, parallel=1).chat(PROMPTS, 6)
    assert opened(server, tmp_path).chat(PROMPTS, 6)
    assert [body["messages"][0]["content"] for _, body in server.requests].count(PROMPTS[0]) == 1


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("garbage", "its reply is not JSON"), ("bare", "reports usage"), (404, "answers 404"), (400, "answers 400")],
)
def test_a_bad_server_is_one_message(server: Server, tmp_path: Path, trouble: Any, message: str) -> None:
    server.trouble = [trouble]
    with pytest.raises(UserError, match=message):
        opened(server, tmp_path).chat(PROMPTS[:1], 6)
    assert not list(tmp_path.rglob("*.json"))  # such a reply is not kept
    assert opened(server, tmp_path).chat(PROMPTS[:1], 6)[0].text == server.reader.generate(PROMPTS[:1], 6)[0].text


def test_a_server_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        Endpoint(EndpointSpec("http://127.0.0.1:9/v1", "small", retries=0), tmp_path).chat(["x"], 4)


def test_the_key_comes_from_the_environment(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with serving(Server(checkpoint, key="secret")) as server:
        with pytest.raises(UserError, match="environment variable A_KEY is not set"):
            opened(server, tmp_path, api_key_env="A_KEY")
        monkeypatch.setenv("A_KEY", "wrong")
        with pytest.raises(UserError, match="refuses the key in A_KEY"):
            opened(server, tmp_path, api_key_env="A_KEY").chat(["bada"], 4)
        monkeypatch.setenv("A_KEY", "secret")
        assert opened(server, tmp_path, api_key_env="A_KEY").chat(["bada"], 4)
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.json"))


def referred(server: Server, directory: Path, **params: Any) -> ModelReference:
    """What an opener gets."""
    return ModelReference(ModelParams(server.url, "small", **{"retries": 0, **params}), directory, 1)


def test_limits_of_a_server_are_statuses_of_a_cell(server: Server, tmp_path: Path) -> None:
    server.window_tokens = 20
    with pytest.raises(CellStatus) as raised:
        ServedReader(referred(server, tmp_path)).generate([sentence(random.Random(0), 40)], 4)
    assert raised.value.status == "unsupported_context" and "maximum context length is 20" in raised.value.reason
    server.trouble = ["slow"]
    with pytest.raises(CellStatus) as raised:
        ServedReader(referred(server, tmp_path, timeout_s=0.2)).generate(["bada"], 4)
    assert raised.value.outcome == {"status": "timeout", "reason": raised.value.reason, "refused": True}
    assert raised.value.reason.endswith("no reply within 0.2 s; the next run asks again")


def test_a_served_embedder_and_reranker_score_as_the_model_does(server: Server, tmp_path: Path) -> None:
    rng = random.Random(0)
    documents = make_corpus(rng, 40)
    plain = server.embedder.documents([Document(0, document.text, 0) for document in documents])
    embedder = ServedEmbedder(referred(server, tmp_path, query_prefix="what: "))
    np.testing.assert_allclose(embedder.documents(documents), plain, atol=1e-6)
    (query,) = server.embedder.documents([Document(0, "what: bada", 0)])
    np.testing.assert_allclose(embedder.queries(["bada"]), query[None], atol=1e-6)
    pairs = [(question, document) for document in documents[:3] for question in ("bada", "kolo")]
    scores = ServedReranker(referred(server, tmp_path)).scores(pairs)
    expected = {
        question: 9 * plain[:3] @ server.embedder.documents([Document(0, question, 0)])[0]
        for question in ("bada", "kolo")
    }
    np.testing.assert_allclose(scores, [expected[q][place // 2] for place, (q, _) in enumerate(pairs)], atol=1e-5)


def reference(server: Server, directory: Path) -> Path:
    """A model directory that refers to a server."""
    write_json({"kind": "endpoint", "params": {"base_url": server.url, "model": "small"}}, directory / "reference.json")
    return directory


def test_any_reading_system_reads_with_a_served_model(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("parts.reading", "long_context"):
        monkeypatch.setattr(f"baselines.{module}.open_reader", baselines.parts.models.open_reader)
    rng = random.Random(0)
    view, questions = make_view(rng, make_corpus(rng, 12))
    resources = Resources(reference(server, tmp_path / "served"), None, None, threads=1, seed=0)
    system = bm25.make(SystemSpec("bm25", "", params={"read_k": 2}), resources)
    answers = system.answer(questions, view)
    chosen = system.select(questions, view)
    texts = [
        prompts.reading_message([(d.doc_id, d.text) for d in item.documents], question.text, question.answer_prefix)
        for item, question in zip(chosen, questions, strict=True)
    ]
    expected = server.reader.generate(texts, 8)
    assert [(a.text, a.input_tokens) for a in answers] == [(g.text, g.input_tokens) for g in expected]
    usage = system.pop_usage()["reader"]
    assert usage["requests"] == len(set(texts)) and usage["output_tokens"] > 0
    whole = LongContext(LongParams(window_tokens=4000), resources).answer(questions[:1], view)
    assert whole[0].input_tokens > answers[0].input_tokens


def test_a_model_that_cannot_do_what_is_asked_is_named(tmp_path: Path) -> None:
    write_json({"kind": "bm25", "params": {}}, tmp_path / "odd" / "reference.json")
    with pytest.raises(UserError, match=r"models\.yaml: odd: .*kind 'bm25'"):
        baselines.parts.models.open_embedder(tmp_path / "odd", 1)
