"""Memory Interleave: the citation automaton, rounds, fetched text, and what happens to wrong ids."""

from __future__ import annotations

import math

import pytest
import torch

from msa.generation.decode import Session
from msa.generation.generate import Citations, Interleave, Limits
from msa.generation.reader import Reader
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.model.decoder import Attention, MSAModel
from msa.model.prompt import Prompter, Row
from msa.ops import dispatch
from msa_base.records import Question
from tests.small_model import ROUTED, small_config


def answer(model, prompter, documents, questions, **limits):
    bank = Encoder(model, prompter).bank(documents)
    memory = BankMemory(bank, None, torch.zeros(len(questions), 0, dtype=torch.bool), [[]] * len(questions), 3)
    by_id = {document.doc_id: document for document in documents}
    engine = Interleave(model, prompter, Limits(**limits), lambda question, doc_id: by_id.get(doc_id))
    return engine.answer(questions, memory)


def questions(count=3):
    texts = ["what is alpha", "what is the number for gamma delta", "number"]
    return [Question(f"q{n}", texts[n % 3], "The answer is", 5) for n in range(count)]


def walk(automaton, tokens):
    for token in tokens:
        assert token in automaton.allowed()
        automaton.advance(token)


def test_only_candidates_can_be_spelled_each_once(prompter):
    candidates = {tuple(prompter.text(f"[{number}]")): -1.0 for number in (12, 17, 203)}
    automaton = Citations(prompter, candidates, 8, may_end=False)
    one, two = prompter.text("[17]"), prompter.text("[203]")
    assert prompter.object_ref_end not in automaton.allowed()
    walk(automaton, one)
    assert prompter.object_ref_end in automaton.allowed() and prompter.end_of_retrieve not in automaton.allowed()
    walk(automaton, one[:2])
    assert list(automaton.allowed()) == [prompter.text("2")[0]]  # 17 is taken, so only 12 goes on
    walk(automaton, prompter.text("2]"))
    walk(automaton, [*two, prompter.object_ref_end])
    assert automaton.done and list(automaton.allowed()) == [prompter.object_ref_end]


def test_ids_of_a_round_are_bounded_and_a_later_round_may_end(prompter):
    candidates = {tuple(prompter.text(f"[{number}]")): -1.0 for number in (1, 2)}
    automaton = Citations(prompter, candidates, 1, may_end=True)
    assert prompter.end_of_retrieve in automaton.allowed()
    walk(automaton, prompter.text("[2]"))
    assert list(automaton.allowed()) == [prompter.object_ref_end]
    assert list(Citations(prompter, {}, 4, may_end=False).allowed()) == [prompter.object_ref_end]


def test_priors_add_up_over_a_shared_spelling(prompter):
    candidates = {
        tuple(prompter.text(f"[{number}]")): math.log(share) for number, share in ((12, 0.5), (17, 0.3), (203, 0.2))
    }
    automaton = Citations(prompter, candidates, 8, may_end=True)
    bracket = prompter.text("[")[0]
    assert automaton.allowed() == pytest.approx({bracket: 0.0, prompter.end_of_retrieve: 0.0})
    automaton.advance(bracket)
    one, two = prompter.text("1")[0], prompter.text("2")[0]
    assert automaton.allowed() == pytest.approx({one: math.log(0.8), two: math.log(0.2)})


def test_constrained_ids_are_routed_documents(model, prompter, documents):
    for trace in answer(model, prompter, documents, questions(), max_rounds=2):
        assert trace.cited and len(set(trace.cited)) == len(trace.cited)
        routed = {doc_id for ids in trace.routed.values() for doc_id in ids}
        assert set(trace.cited) <= routed
        assert trace.status == "ok" and 1 <= trace.rounds <= 2


def test_a_batch_answers_as_its_questions_do_alone(model, prompter, documents):
    together = answer(model, prompter, documents, questions(), max_rounds=3)
    for number, question in enumerate(questions()):
        alone = answer(model, prompter, documents, [question], max_rounds=3)[0]
        assert (alone.text, alone.cited, alone.routed) == (
            together[number].text,
            together[number].cited,
            together[number].routed,
        )


def test_one_round_is_the_variant_without_interleave(model, prompter, documents):
    for trace in answer(model, prompter, documents, questions(), max_rounds=1):
        assert trace.rounds == 1
        assert set(trace.routed) <= {"layer2", "layer3", "round2/layer2", "round2/layer3"}


def test_malformed_free_ids_end_retrieval_and_are_recorded(model, prompter, documents):
    for trace in answer(model, prompter, documents, questions(), constrain_ids=False):
        # a random model spells no known id
        assert trace.status in ("malformed_ids", "unknown_id")
        assert trace.rounds == 1 and trace.cited == []
        assert trace.output_tokens > 0


@pytest.mark.parametrize(("text", "found"), [("[17][4]", [17, 4]), ("[17", []), ("17]", []), ("[a][9]", [9]), ("", [])])
def test_ids_are_parsed_from_generated_text(model, prompter, text, found):
    engine = Interleave(model, prompter, Limits(), lambda question, doc_id: None)
    assert engine._parse(prompter.text(text)) == found


def test_fetched_tokens_are_bounded(model, prompter, documents):
    for trace in answer(model, prompter, documents, questions(), max_fetched_tokens=20):
        assert trace.fetched_tokens <= 20


def test_routing_tokens_are_the_question_and_the_newest_text(prompter, documents):
    row = prompter.opening("what is alpha")
    first = sum(row.routing)
    prompter.add_fetched(row, documents[:1])
    prompter.add_fetched(row, documents[1:2])
    newest = len(prompter.fetched(documents[1]))
    assert sum(row.routing) == first + newest
    assert isinstance(row, Row) and row.routing[-1] is False


def test_released_checkpoints_are_asked_in_their_own_words(prompter, documents):
    """EverMind-AI/MSA at 30405b2: src/msa_service.py (_apply_template) and src/msa/generate.py."""
    theirs = Prompter(prompter.tokenizer, released=True)
    row = theirs.opening("what is alpha")
    asked = (
        "\nPlease answer the question based on the above historical document information\n\nwhat is alpha\n"
        "Please return all documents related to the question\n"
    )
    assert row.ids == [*theirs.head, *theirs.text(asked), *theirs.tail]
    assert row.routing == [False] * len(theirs.head) + [True] * len(theirs.text(asked)) + [False] * len(theirs.tail)
    for prefix, opening in (
        ("", "The answer to the question is:"),
        (" alpha is", "The answer to the question is: alpha is"),
    ):
        answered = theirs.add_answer_request(Row(), "what is alpha", prefix).ids
        repeated = theirs.text("The user's question is: what is alpha\n")
        assert answered == [theirs.im_start, *repeated, theirs.object_ref_end, *theirs.text(opening)]


def test_a_reader_replies_to_each_message_as_it_does_alone(model, prompter, monkeypatch):
    monkeypatch.setattr("msa.generation.reader.read.open_reader", lambda directory, threads: (model, prompter))
    reader = Reader("unused")
    messages = ["what is alpha", "what is the number for gamma delta , and for beta", "number"]
    together = reader.generate(messages, 5)
    assert [found.input_tokens for found in together] == [len(prompter.message(text).ids) for text in messages]
    for text, found in zip(messages, together, strict=True):
        (alone,) = reader.generate([text], 5)
        assert (alone.text, alone.output_tokens, alone.truncated) == (found.text, found.output_tokens, found.truncated)
        assert found.output_tokens <= 5 and (found.output_tokens == 5) == found.truncated
    assert len({found.text for found in together}) > 1


@pytest.fixture(params=["reference", "cpu", "triton"])
def kernels(request, monkeypatch):
    """One implementation for every operation of the process."""
    monkeypatch.setattr(dispatch, "_configured", dispatch._configured)
    dispatch.use(request.param)
    return request.param


def test_answers_do_not_depend_on_what_computes(kernels, prompter, tokenizer, documents, monkeypatch):
    """Wide keys, so that a processor too reads memory where it lies."""
    torch.manual_seed(1)
    shape = {"layers": 3, "query_heads": 8, "kv_heads": 4, "head_dim": 128, "routed_layers": (1, 2)}
    config = small_config(tokenizer.get_vocab_size(), **shape, **ROUTED)
    model = MSAModel(config).eval().requires_grad_(False)
    in_place = []
    attend = Attention.attend_in_place
    monkeypatch.setattr(
        Attention, "attend_in_place", lambda *given: in_place.append(given[1].shape[1]) or attend(*given)
    )
    sessions = []
    for name in ("reference", kernels):
        dispatch.use(name)
        memory = BankMemory(
            Encoder(model, prompter).bank(documents), None, torch.zeros(2, 0, dtype=torch.bool), [[], []], 3
        )
        rows = [prompter.opening(text) for text in ("what is the number for gamma delta", "number")]
        session = Session(model, rows, prompter.pad, len(prompter.head), memory)
        prefill = session.logits
        session.feed([[3, 4], [5]])
        sessions.append((session, prefill, session.feed([[6], [7]])))
    (plain, *expected), (other, *got) = sessions
    for mine, theirs in zip(other.selections, plain.selections, strict=True):
        assert torch.equal(mine.documents, theirs.documents) and torch.allclose(mine.scores, theirs.scores, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, expected, strict=True))
    lengths = {"reference": set(), "cpu": {1}, "triton": {1, 2, max(len(row.ids) for row in rows)}}
    assert set(in_place) == lengths[kernels]
