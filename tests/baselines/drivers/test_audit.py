"""The audit of prompts: honest prompts pass, each kind of damage is named, and every cell keeps its sample."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from baselines.drivers import audit
from baselines.parts.reading import ReaderInput, read_answer
from msa.generation.generate import Interleave, Limits
from msa.generation.reader import Reader
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.model.decoder import MSAModel
from msa_base.prompts import reading_message
from msa_base.records import Answer, CorpusView, Document, Question
from msa_base.stage_records import Audit, RunRecord
from tests.baselines.conftest import WORDS, Workplace
from tests.baselines.serving import make_checkpoint

DOCUMENTS = [Document(place + 10, " ".join(WORDS[place : place + 8]), 20) for place in range(3)]
QUESTION = Question("q", "bada kolo mine", "supi", 6)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A small model."""
    return Reader(make_checkpoint(tmp_path_factory.mktemp("model")), 1)


@pytest.fixture
def answer(reader: Reader) -> Answer:
    """An answer of it to the question."""
    (generation,) = reader.answer([(DOCUMENTS, QUESTION)])
    return read_answer(QUESTION, ReaderInput(DOCUMENTS), generation)


def found(answer: Answer, model, documents=DOCUMENTS, question=QUESTION) -> list[str]:
    return list(audit.problems(question, answer, documents, model))


def test_what_a_reader_reads_passes(reader, answer) -> None:
    assert found(answer, reader) == []
    assert len(answer.prompt) == answer.input_tokens
    (shared,) = reader.answer_shared(DOCUMENTS, [QUESTION])
    assert shared.prompt == answer.prompt


def damaged(ids: list[int], prompter, kind: str) -> list[int]:
    part = prompter.text(DOCUMENTS[1].text)
    start = next(place for place in range(len(ids)) if ids[place : place + len(part)] == part)
    question = len(ids) - len(prompter.text(QUESTION.answer_prefix)) - len(prompter.give_answer) - 1
    return {
        "bos": [prompter.im_end, *ids],
        "twice": [*prompter.head, *ids],
        "document": ids[: start + 2] + ids[start + 3 :],
        "question": ids[:question] + ids[question + 1 :],
        "ending": ids[:-1],
        "padding": [*ids[:start], prompter.pad, *ids[start:]],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("bos", audit.TEMPLATE),
        ("twice", audit.TEMPLATE),
        ("document", audit.DOCUMENT),
        ("question", audit.QUESTION),
        ("ending", audit.ENDING),
        ("padding", audit.PADDING),
    ],
)
def test_each_damage_is_named(reader, answer, kind, problem) -> None:
    ids = damaged(answer.prompt, reader.prompter, kind)
    assert problem in found(replace(answer, prompt=ids, input_tokens=len(ids)), reader)


def test_window_counts_and_what_was_not_recorded(reader, answer) -> None:
    narrow = SimpleNamespace(
        prompter=reader.prompter, model=SimpleNamespace(config=SimpleNamespace(max_positions=answer.input_tokens + 5))
    )
    assert found(answer, narrow) == [audit.WINDOW]
    narrow.model.config.max_positions += 1
    assert found(answer, narrow) == []
    assert found(replace(answer, input_tokens=answer.input_tokens - 1), reader) == [audit.COUNT]
    assert found(replace(answer, prompt=None), reader) == [audit.NOT_RECORDED]
    assert found(answer, SimpleNamespace()) == [audit.NOT_RECORDED]  # tokens of a model that nobody can read


def test_messages_to_served_models() -> None:
    message = reading_message([(d.doc_id, d.text) for d in DOCUMENTS], QUESTION.text, QUESTION.answer_prefix)
    assert found(Answer("q", "x", prompt=message), None) == []
    assert found(Answer("q", "x", prompt=message.replace("kolo", "")), None) == [audit.QUESTION, audit.DOCUMENT]
    assert found(Answer("q", "x", prompt=message + "."), None) == [audit.ENDING]


def test_documents_that_do_not_fit_are_said_to_be_left_out(reader) -> None:
    torch.manual_seed(0)
    config = replace(reader.model.config, routed_layers=(2, 3), pool_tokens=4, top_k_documents=3)
    model = MSAModel(config)
    bank = Encoder(model, reader.prompter).bank(DOCUMENTS)
    memory = BankMemory(bank, None, torch.zeros(1, 0, dtype=torch.bool), [[]], 3)
    by_id = {document.doc_id: document for document in DOCUMENTS}

    def run(tokens: int):
        limits = Limits(max_fetched_tokens=tokens, max_rounds=1, max_ids=1)
        return Interleave(model, reader.prompter, limits, lambda question, doc_id: by_id[doc_id]).answer(
            [QUESTION], memory
        )[0]

    trace = run(19)
    assert len(trace.left_out) == 1 and trace.cited == [] and trace.status == "ok"
    trace = run(20)
    assert trace.left_out == [] and len(trace.cited) == 1
    read = Answer("q", trace.text, trace.cited, rounds=1, input_tokens=trace.input_tokens, truncated=trace.truncated)
    read.prompt = trace.prompt
    holder = SimpleNamespace(prompter=reader.prompter, model=model)
    assert found(read, holder, [by_id[trace.cited[0]]]) == []


def test_every_cell_keeps_a_sample_and_its_outcome(workplace: Workplace) -> None:
    assert workplace.run("oracle") == 0
    cell = workplace.paths.cell("oracle", "needles", "2K", 0)
    rows = [json.loads(line) for line in (cell / "prompts.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == ["q0", "q2", "q4", "q6"]
    record = RunRecord.open(cell / "run.json")
    assert record.audit == Audit(checked=4, problems={audit.NOT_RECORDED: 4})  # the stand-in keeps no prompt
    assert record.left_out == 0
    assert '"prompt"' not in (cell / "predictions.jsonl").read_text()


def test_a_system_that_reads_everything_is_held_to_it(reader) -> None:
    view = CorpusView(DOCUMENTS, {})
    (whole,), (cut,) = reader.answer_shared(DOCUMENTS, [QUESTION]), reader.answer_shared(DOCUMENTS[:2], [QUESTION])
    system = SimpleNamespace(models={"reader": reader}, reads_everything=True, reads_notes=False)
    for generation, problems in ((whole, []), (cut, [audit.DOCUMENT])):
        (row,) = audit.audit(system, [QUESTION], [read_answer(QUESTION, ReaderInput([]), generation)], view)
        assert row["problems"] == problems and row["first_tokens"][0] == "<|im_start|>"
        assert row["prompt_tokens"] == generation.input_tokens


def test_notes_stand_in_for_the_documents_that_a_system_cites(reader) -> None:
    view = CorpusView(DOCUMENTS, {})
    (generation,) = reader.answer([([Document(0, "what was written down", 4)], QUESTION)])
    cited = ReaderInput([DOCUMENTS[0]])
    for reads_notes, problems in ((True, []), (False, [audit.DOCUMENT])):
        system = SimpleNamespace(models={"reader": reader}, reads_everything=False, reads_notes=reads_notes)
        (row,) = audit.audit(system, [QUESTION], [read_answer(QUESTION, cited, generation)], view)
        assert row["problems"] == problems
