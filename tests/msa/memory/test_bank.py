"""Banks on disk and under edits: no form of storing, cutting or changing a bank changes what a question finds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from msa.checkpoints import write
from msa.generation.decode import Session
from msa.memory.bank import Bank, Signature
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory, scans_of
from msa.memory.segment import Segment, StoredLayer, Texts
from msa.ops import dispatch
from msa.ops.keys import DTYPES, Keys, Queries
from msa_base.errors import UserError
from msa_base.records import Document

QUESTIONS = ["what is alpha", "what is the number for gamma delta beta", "number"]


@pytest.fixture
def encoder(model, prompter) -> Encoder:
    return Encoder(model, prompter)


def ask(bank: Bank, model, prompter, scans=None) -> Session:
    rows = [prompter.opening(question) for question in QUESTIONS]
    memory = BankMemory(bank, None, torch.zeros(len(rows), 0, dtype=torch.bool), [[]] * len(rows), 3, scans)
    return Session(model, rows, prompter.pad, len(prompter.head), memory)


def assert_same(one: Session, other: Session) -> None:
    """Same documents and, to float32's last digits, same scores and logits."""
    for mine, theirs in zip(one.selections, other.selections, strict=True):
        assert torch.equal(mine.documents, theirs.documents)
        assert torch.allclose(mine.scores, theirs.scores, atol=1e-6)
    assert torch.allclose(one.logits, other.logits, atol=1e-5)


def stream(encoder: Encoder, documents, directory, tokens=40) -> Bank:
    return encoder.build(documents, directory, corpus="c", segment_tokens=tokens)


def test_a_bank_of_segments_on_disk_answers_like_one_in_memory(tmp_path, encoder, documents, model, prompter):
    built = stream(encoder, documents, tmp_path / "bank")
    assert len(built.segments) > 2
    opened = Bank.open(tmp_path / "bank", encoder.signature)
    assert opened.doc_ids.tolist() == [document.doc_id for document in documents]
    assert_same(ask(opened, model, prompter), ask(encoder.bank(documents), model, prompter))
    assert [opened.document(document.doc_id).text for document in documents] == [
        document.text for document in documents
    ]
    assert opened.document(4) is None


def test_an_overlay_over_segments_answers_like_one_over_a_whole_bank(tmp_path, encoder, documents, model, prompter):
    """What a question sees of its overlay is the last part's, however many segments stand before it."""
    overlay = encoder.segment(
        [Document(5, "the number for gamma delta beta is two", 8), Document(6, "alpha is a word", 4)]
    )
    sees = torch.tensor([[True, False], [False, False], [False, True]])
    rows = [prompter.opening(question) for question in QUESTIONS]
    sessions = []
    for bank in (stream(encoder, documents, tmp_path / "bank"), encoder.bank(documents)):
        memory = BankMemory(bank, overlay, sees, [[documents[1].doc_id], [], []], 3)
        assert memory.rows([2]).visible[-1].tolist() == [[False, True]]
        sessions.append(Session(model, rows, prompter.pad, len(prompter.head), memory))
    assert_same(*sessions)


def test_an_interrupted_build_goes_on_behind_its_last_segment(tmp_path, encoder, documents, model, prompter):
    def failing():
        yield from documents[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(encoder, failing(), tmp_path / "bank")
    begun = Bank.open(tmp_path / "bank")
    kept = {segment.file: (tmp_path / "bank" / segment.file).stat().st_mtime_ns for segment in begun.segments}
    assert 0 < len(begun) < 6
    built = stream(encoder, documents, tmp_path / "bank")
    assert built.doc_ids.tolist() == [document.doc_id for document in documents]
    assert all((tmp_path / "bank" / file).stat().st_mtime_ns == written for file, written in kept.items())
    assert_same(ask(built, model, prompter), ask(encoder.bank(documents), model, prompter))


def test_a_build_does_not_go_on_with_other_documents(tmp_path, encoder, documents):
    stream(encoder, documents[:5], tmp_path / "bank")
    with pytest.raises(UserError, match="other documents"):
        stream(encoder, documents[1:], tmp_path / "bank")
    with pytest.raises(UserError, match="another corpus"):
        encoder.build(documents, tmp_path / "bank", corpus="d")


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_a_prefix_is_the_bank_of_a_prefix(tmp_path, encoder, documents, model, prompter, count):
    bank = stream(encoder, documents, tmp_path / "bank").prefix(count)
    assert len(bank) == count
    assert_same(ask(bank, model, prompter), ask(encoder.bank(documents[:count]), model, prompter))


def test_a_prefix_longer_than_the_bank_is_refused(encoder, documents):
    with pytest.raises(UserError, match="holds 9 documents, not 10"):
        encoder.bank(documents).prefix(10)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shards_hold_every_document_once(tmp_path, encoder, documents, ranks):
    bank = stream(encoder, documents, tmp_path / "bank")
    shards = [bank.shard(rank, ranks) for rank in range(ranks)]
    assert torch.cat([shard.doc_ids for shard in shards]).tolist() == bank.doc_ids.tolist()
    if ranks == 2:
        sizes = [sum(int(segment.offsets[-1]) for segment in shard.segments) for shard in shards]
        assert abs(sizes[0] - sizes[1]) <= 2 * max(int(segment.offsets.diff().max()) for segment in bank.segments)


@pytest.mark.parametrize("disk", [False, True])
def test_an_edited_bank_answers_like_a_rebuilt_one(tmp_path, encoder, documents, model, prompter, disk):
    bank = stream(encoder, documents[:7], tmp_path / "bank") if disk else encoder.bank(documents[:7])
    changed = Document(documents[2].doc_id, "alpha alpha what is alpha", 15)
    bank.add(encoder.segment(documents[7:]))
    bank.replace(encoder.segment([changed]))
    bank.remove([documents[0].doc_id, documents[8].doc_id])
    rebuilt = encoder.bank([changed, documents[1], *documents[3:8]])
    for edited in (bank, Bank.open(tmp_path / "bank") if disk else bank):
        assert sorted(edited.doc_ids.tolist()) == sorted(rebuilt.doc_ids.tolist()) and len(edited) == 7
        assert edited.document(changed.doc_id).text == changed.text and edited.document(documents[0].doc_id) is None
        assert_same(ask(edited, model, prompter), ask(rebuilt, model, prompter))
    bank.compact()
    assert all(bool(segment.live.all()) for segment in bank.segments) and len(bank.segments) == 1
    assert_same(ask(bank, model, prompter), ask(rebuilt, model, prompter))
    if disk:
        files = {path.name for path in (tmp_path / "bank").iterdir()}
        assert files == {"bank.json", *(segment.file for segment in bank.segments)}
        assert_same(ask(Bank.open(tmp_path / "bank"), model, prompter), ask(rebuilt, model, prompter))


def test_a_removed_document_may_come_again(encoder, documents):
    bank = encoder.bank(documents)
    bank.remove([documents[3].doc_id])
    bank.add(encoder.segment([documents[3]]))
    assert len(bank) == 9 and bank.document(documents[3].doc_id) == replace(
        documents[3], num_tokens=bank.document(documents[3].doc_id).num_tokens
    )


def test_a_snapshot_stays_as_it_was(tmp_path, encoder, documents):
    bank = stream(encoder, documents, tmp_path / "bank")
    before, ids = bank.snapshot(), bank.doc_ids.tolist()
    bank.remove(ids[:2])
    bank.replace(encoder.segment([replace(documents[4], text="gamma")]))
    bank.compact()
    assert before.doc_ids.tolist() == ids
    assert [before.document(doc_id).text for doc_id in ids] == [document.text for document in documents]
    before.remove(ids[2:3])
    assert bank.document(ids[2]).text == documents[2].text and bank.document(ids[4]).text == "gamma"


def test_an_edit_while_a_document_is_looked_up_is_not_forgotten(encoder, documents, monkeypatch):
    bank, argsort = encoder.bank(documents), torch.Tensor.argsort

    def edit_meanwhile(ids, *arguments):
        monkeypatch.setattr(torch.Tensor, "argsort", argsort)
        bank.remove([documents[3].doc_id])
        return argsort(ids, *arguments)

    monkeypatch.setattr(torch.Tensor, "argsort", edit_meanwhile)
    assert bank.document(documents[3].doc_id) is not None  # it was there when the look-up began
    assert bank.document(documents[3].doc_id) is None


def test_impossible_edits_change_nothing(tmp_path, encoder, documents):
    bank = stream(encoder, documents[:5], tmp_path / "bank")
    before = (tmp_path / "bank" / "bank.json").read_text()
    with pytest.raises(UserError, match=f"document id {documents[1].doc_id} is in the bank already"):
        bank.add(encoder.segment(documents[1:2]))
    with pytest.raises(UserError, match="document id 3 is not in the bank"):
        bank.remove([documents[1].doc_id, 3])
    with pytest.raises(UserError, match="is not in the bank"):
        bank.replace(encoder.segment(documents[6:7]))
    with pytest.raises(UserError, match="occurs twice"):
        bank.add(encoder.segment([documents[7], documents[7]]))
    assert (tmp_path / "bank" / "bank.json").read_text() == before and len(bank) == 5


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("scan", [None, "int8", "float8", "bfloat16"])
def test_scores_are_exact_for_the_stored_precision(stored, scan):
    """Many near-equal keys: the scan alone would confuse them, rescoring may not."""
    torch.manual_seed(0)
    heads, width, count = 2, 16, 400
    keys = torch.nn.functional.normalize(
        torch.randn(1, heads, width // heads) + 0.02 * torch.randn(count, heads, width // heads), dim=-1
    ).flatten(1)
    kept = Keys.store(keys, stored)
    queries = torch.randn(3, 5, width) / 8
    mask = torch.tensor([[True] * 5, [False, True, True, False, False], [False] * 5])
    expected = (queries.double() @ kept.exact().T).masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1).float()
    bank = _bank_of(kept, heads, documents=count)
    memory = BankMemory(bank, None, torch.zeros(3, 0, dtype=torch.bool), [[]] * 3, 7, scans_of(bank, scan))
    winners = memory.winners(0, Queries.of(queries, mask))
    for row in range(2):
        order = sorted(
            range(count),
            key=lambda place, row=row: (-float(expected[row, place]), int(bank.segments[0].doc_ids[place])),
        )[:7]
        assert winners.doc_ids[row].tolist() == bank.segments[0].doc_ids[order].tolist()
        assert torch.equal(winners.scores[row], expected[row, order])
    assert winners.doc_ids[2].tolist() == [-1] * 7


def test_the_scans_bound_holds():
    torch.manual_seed(1)
    keys = torch.nn.functional.normalize(torch.randn(300, 2, 32), dim=-1).flatten(1)
    queries = Queries.of(torch.randn(4, 6, 64) / 8, torch.ones(4, 6, dtype=torch.bool))
    for stored in DTYPES:
        kept = Keys.store(keys, stored)
        exact = (queries.tokens.double() @ kept.exact().T).amax(1)
        for scan in (None, *DTYPES):
            read = scans_of(_bank_of(kept, 2, 300), scan)[0][0].scanned
            for implementation in ("reference", "cpu"):
                rough, bound = dispatch.scores_with_error(
                    queries.tokens, queries.mask, read, implementation=implementation
                )
                assert ((rough.double() - exact).abs().amax(1) <= bound).all()


def _bank_of(keys: Keys, heads: int, documents: int) -> Bank:
    """A bank of one layer with one chunk a document, ids in falling order."""
    ids = torch.arange(documents, 0, -1) * 3
    content = torch.zeros(documents, 2, heads, keys.values.shape[1] // heads)
    live = torch.ones(documents, dtype=torch.bool)
    texts = Texts.of(["x"] * documents)
    segment = Segment(ids, torch.arange(documents + 1), torch.ones_like(ids), live, [StoredLayer(keys, content)], texts)
    return Bank(Signature("", "", 4, (0,), heads, content.shape[-1], keys.dtype, "float32"), [segment])


def test_ties_go_to_the_lowest_id():
    keys = Keys.store(torch.ones(6, 4) / 2, "float32")
    memory = BankMemory(_bank_of(keys, 1, 6), None, torch.zeros(1, 0, dtype=torch.bool), [[]], 3)
    winners = memory.winners(0, Queries.of(torch.ones(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)))
    assert winners.doc_ids.tolist() == [[3, 6, 9]]


def test_stored_precisions_answer_alike(model, prompter, documents):
    full = ask(Encoder(model, prompter).bank(documents), model, prompter)
    for keys in ("bfloat16", "int8"):
        stored = ask(Encoder(model, prompter, keys, "bfloat16").bank(documents), model, prompter)
        assert torch.allclose(stored.selections[0].scores, full.selections[0].scores, atol=2e-2)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, model, tokenizer):
    """A checkpoint directory, so that its banks carry digests."""
    directory = tmp_path / "model"
    write.save(model, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_a_bank_of_another_model_tokenizer_or_pooling_is_refused(tmp_path, saved, model, prompter, documents):
    encoder = Encoder(model, prompter, directory=saved)
    stream(encoder, documents, tmp_path / "bank")
    assert len(Bank.open(tmp_path / "bank", encoder.signature)) == 9
    for key, value in (("model", "0" * 64), ("tokenizer", "1" * 64), ("pool_tokens", 16), ("routed_layers", (3,))):
        with pytest.raises(UserError, match=f"bank.json: {key} of the bank is"):
            Bank.open(tmp_path / "bank", replace(encoder.signature, **{key: value}))


def test_damaged_banks_are_named(tmp_path, encoder, documents):
    directory = tmp_path / "bank"
    bank = stream(encoder, documents, directory)
    path = directory / bank.segments[1].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=f"{path.name}: not a whole segment"):
        Bank.open(directory)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: no such file"):
        Bank.open(directory)
    path.write_bytes((directory / bank.segments[0].file).read_bytes())
    if bank.segments[0].doc_ids.shape != bank.segments[1].doc_ids.shape:
        with pytest.raises(UserError, match=r"not the segment that bank\.json names"):
            Bank.open(directory)
    path.write_bytes(whole)
    manifest = json.loads((directory / "bank.json").read_text())
    (directory / "bank.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(UserError, match="is of format 9"):
        Bank.open(directory)
    del manifest["signature"]["kv_heads"]
    (directory / "bank.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"bank\.json: was changed after it was written; delete the bank"):
        Bank.open(directory)
    with pytest.raises(UserError, match="holds no bank"):
        Bank.open(tmp_path / "none")


def test_documents_that_cannot_be_encoded_are_named(tmp_path, model, prompter, documents):
    encoder = Encoder(model, prompter)
    with pytest.raises(UserError, match="document 3 has no text"):
        encoder.bank([documents[0], Document(3, " \n", 5)])
    model.config, kept = replace(model.config, max_positions=20), model.config
    try:
        with pytest.raises(UserError, match=r"document 4 has \d+ tokens, more than the model's window of 20"):
            stream(encoder, [Document(4, "alpha " * 30, 40)], tmp_path / "bank")
    finally:
        model.config = kept
    assert len(Bank.open(tmp_path / "bank")) == 0
    with pytest.raises(UserError, match="int4"):
        Encoder(model, prompter, key_dtype="int4")
