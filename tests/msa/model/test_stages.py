"""The staged engine equals the one-pass forward, tails included, and overlays equal rebuilt banks."""

from __future__ import annotations

import pytest
import torch

from msa.generation.decode import Session
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory, PaddedMemory
from msa.model import onepass
from msa.model.prompt import Row, own_positions
from msa_base.records import Document


def whole(model, prompter, documents, row: Row):
    """The one-pass outputs of documents and a row, labelled as the fixture's sequences are."""
    head = len(prompter.head)
    ids, labels, positions = list(row.ids[:head]), [onepass.TEMPLATE] * head, list(range(head))
    for number, tokens in enumerate(prompter.documents(documents), start=1):
        ids, labels, positions = ids + tokens, labels + [number] * len(tokens), positions + list(range(len(tokens)))
    own = own_positions(len(row.ids), head, model.config.top_k_documents)[head:].tolist()
    kinds = [onepass.QUESTION if routing else onepass.TEMPLATE for routing in row.routing[head:]]
    return onepass.forward(
        model, torch.tensor(ids + row.ids[head:]), torch.tensor(labels + kinds), torch.tensor(positions + own)
    )


def memory_of(model, prompter, documents, questions: int = 1) -> BankMemory:
    bank = Encoder(model, prompter, precision="float32").bank(documents)
    return BankMemory(
        bank, None, torch.zeros(questions, 0, dtype=torch.bool), [[]] * questions, model.config.top_k_documents
    )


QUESTIONS = ["what is alpha", "what is the number for gamma delta beta", "number"]


def test_staged_inference_equals_one_pass(model, prompter, documents):
    rows = [prompter.opening(question) for question in QUESTIONS]
    memory = memory_of(model, prompter, documents, len(rows))
    session = Session(model, rows, prompter.pad, len(prompter.head), memory)
    for number, row in enumerate(rows):
        expected = whole(model, prompter, documents, row)
        assert torch.allclose(session.logits[number], expected.logits[-1], atol=1e-4)
        for layer, selection in enumerate(session.selections):
            order = expected.scores[layer].argsort(descending=True)[:3]
            assert selection.documents[number].tolist() == [documents[index].doc_id for index in order]


def test_decoding_token_by_token_equals_one_pass(model, prompter, documents):
    rows = [prompter.opening(question) for question in QUESTIONS]
    session = Session(model, rows, prompter.pad, len(prompter.head), memory_of(model, prompter, documents, len(rows)))
    more = [prompter.text("alpha 17"), prompter.text("beta"), prompter.text("delta delta 4 .")]
    session.feed(more)
    session.feed([[7], [8], [9]])
    for number, row in enumerate(rows):
        row.add(more[number]).add([[7], [8], [9]][number])
        expected = whole(model, prompter, documents, row)
        assert torch.allclose(session.logits[number], expected.logits[-1], atol=1e-4)


def test_a_part_of_a_session_goes_on_alone(model, prompter, documents):
    rows = [prompter.opening(question) for question in QUESTIONS]
    session = Session(model, rows, prompter.pad, len(prompter.head), memory_of(model, prompter, documents, len(rows)))
    part = session.rows([2, 0])
    part.feed([[9], [7]])
    session.feed([[7], [8], [9]])
    assert torch.allclose(part.logits, session.logits[[2, 0]], atol=1e-5)


def test_training_memory_scores_and_attends_like_the_bank(model, prompter, documents):
    rows = [prompter.opening(question) for question in QUESTIONS[:1]]
    wrapped = prompter.documents(documents)
    longest = max(map(len, wrapped))
    ids = torch.tensor([tokens + [prompter.pad] * (longest - len(tokens)) for tokens in wrapped])
    lengths = torch.tensor(list(map(len, wrapped)))
    padded = PaddedMemory(model.encode(ids, lengths), lengths, model.config.pool_tokens, 3)
    trained = Session(model, rows, prompter.pad, len(prompter.head), padded)
    stored = Session(model, rows, prompter.pad, len(prompter.head), memory_of(model, prompter, documents))
    assert torch.allclose(trained.logits, stored.logits, atol=1e-5)
    expected = whole(model, prompter, documents, rows[0])
    for layer, selection in enumerate(trained.selections):
        assert torch.allclose(selection.scores[0], expected.scores[layer], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100000])
def test_encoding_does_not_depend_on_the_batch(model, prompter, documents, batch_tokens):
    one = Encoder(model, prompter, precision="float32").segment(documents)
    other = Encoder(model, prompter, batch_tokens=batch_tokens, precision="float32").segment(documents)
    for layer, again in zip(one.layers, other.layers, strict=True):
        assert torch.allclose(layer.routing.values, again.routing.values, atol=1e-5)
        assert torch.allclose(layer.content, again.content, atol=1e-5)


def test_an_overlay_equals_the_rebuilt_bank(model, prompter, documents):
    replaced = Document(documents[3].doc_id, "alpha alpha what is alpha", 15)
    added = Document(5, "gamma what is the number", 15)
    encoder = Encoder(model, prompter, precision="float32")
    overlay = encoder.segment([replaced, added])
    sees = torch.tensor([[True, True], [False, False], [False, True]])
    memory = BankMemory(
        encoder.bank(documents), overlay, sees, [[replaced.doc_id, added.doc_id], [], [added.doc_id]], 3
    )
    rows = [prompter.opening(question) for question in QUESTIONS]
    found = Session(model, rows, prompter.pad, len(prompter.head), memory)
    corpora = [[added, *documents[:3], replaced, *documents[4:]], documents, [added, *documents]]
    for number, corpus in enumerate(corpora):
        rebuilt = Session(
            model, rows[number : number + 1], prompter.pad, len(prompter.head), memory_of(model, prompter, corpus)
        )
        assert torch.allclose(found.logits[number], rebuilt.logits[0], atol=1e-5)
        for mine, theirs in zip(found.selections, rebuilt.selections, strict=True):
            assert mine.documents[number].tolist() == theirs.documents[0].tolist()


def test_fewer_documents_than_k(model, prompter, documents):
    session = Session(
        model, [prompter.opening("what")], prompter.pad, len(prompter.head), memory_of(model, prompter, documents[:2])
    )
    assert sorted(session.selections[0].documents[0].tolist()) == [-1, documents[0].doc_id, documents[1].doc_id]
    empty = memory_of(model, prompter, [])
    assert Session(model, [prompter.opening("what")], prompter.pad, len(prompter.head), empty).logits.isfinite().all()


@pytest.mark.parametrize("with_memory", [False, True])
def test_wanted_places_get_the_states_of_a_whole_pass(model, prompter, documents, with_memory):
    rows = [prompter.opening(question) for question in QUESTIONS[:2]]
    ids = torch.tensor([(row.ids + [prompter.pad] * 9)[: len(rows[0].ids)] for row in rows])
    routing = torch.tensor([(row.routing + [False] * 9)[: ids.shape[1]] for row in rows])
    memory = memory_of(model, prompter, documents, 2) if with_memory else None
    arguments = dict(memory=memory, routing_mask=routing, reads_memory=torch.arange(ids.shape[1]).expand_as(ids) > 2)
    positions = own_positions(ids.shape[1], 2, 3)
    whole_pass, _ = model(ids, positions, **arguments)
    wanted = torch.tensor([[1, 4, 5], [0, 2, 6]])
    some, _ = model(ids, positions, wanted=wanted, **arguments)
    for row, places in enumerate(wanted):
        assert torch.allclose(some[row], whole_pass[row, places], atol=1e-5)
