"""Memory Parallel: one, two and three processes give the same documents, scores and text, and a lost one is named."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from msa.checkpoints import write
from msa.generation.generate import Interleave, Limits
from msa.memory import parallel, sharded
from msa.memory.bank import Bank
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.memory.tiers import Tiers
from msa.ops.keys import Queries
from msa_base.errors import ProcessLost, UserError
from msa_base.records import Document, Question

LOST = "from msa.memory import parallel; import os\nwith parallel.joined(): os._exit(9)"


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, prompter, tokenizer, documents):
    """A checkpoint and a bank of several segments with a removed document."""
    root = tmp_path_factory.mktemp("sharded")
    write.save(model, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    encoder = Encoder(model, prompter, content_dtype="bfloat16", directory=root / "model")
    bank = encoder.build(documents, root / "bank", segment_tokens=40)
    bank.remove([documents[4].doc_id])
    assert len(bank.segments) > 2 and bank.document(107) is not None
    return root


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Other ranks import this checkout, with one thread each; so has this one, the leader."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answers(root: Path, ranks: int, model, prompter) -> list:
    """Traces, scores and ids of three questions over a bank and a prefix of it, with overlays, as the leader."""
    asked = ["what is alpha", "what is the number for gamma delta beta", "number"]
    questions = [Question(str(n), text, "The answer is", 6) for n, text in enumerate(asked)]
    replaced, added = Document(107, "alpha alpha what is alpha", 15), Document(5, "gamma what is the number", 15)
    overlay = Encoder(model, prompter).segment([replaced, added])
    sees = torch.tensor([[True, True], [False, False], [False, True]])
    bank, result = Bank.open(root / "bank"), []
    with parallel.joined(ranks, sharded.command(root / "bank", {}, 1)):
        for base in (bank, bank.prefix(4)):
            if ranks > 1:
                shard, scans = sharded.hold(base, Tiers(), torch.device("cpu"))
                memory = sharded.ShardedMemory(shard, overlay, sees, [[107, 5], [], [5]], 3, scans)
            else:
                memory = BankMemory(base, overlay, sees, [[107, 5], [], [5]], 3)
            tokens = torch.linspace(-1, 1, 3 * 2 * 16).view(3, 2, 16)
            winners = memory.winners(0, Queries(tokens, torch.ones(3, 2, dtype=torch.bool)))
            interleave = Interleave(model, prompter, Limits(max_rounds=2), lambda _, i, base=base: base.document(i))
            traces = [[t.text, t.cited, t.routed] for t in interleave.answer(questions, memory)]
            queries = Queries(tokens, torch.ones(3, 2, dtype=torch.bool))
            fused = memory.fused_winners({0: queries, 1: Queries(-tokens, queries.mask)}, [0.25, 0.75], "mean")
            lists = [[found.scores.tolist(), found.doc_ids.tolist()] for found in (winners, fused)]
            result.append([*traces, *lists])
        if ranks > 1:
            sharded.stop()
    return result


def test_any_number_of_ranks_answers_alike(place, model, prompter):
    alone = answers(place, 1, model, prompter)
    assert answers(place, 2, model, prompter) == alone
    assert answers(place, 3, model, prompter) == alone
    (first, *_), (scores, ids) = alone[0][0], alone[0][-2]
    assert isinstance(first, str) and len({doc_id for row in ids for doc_id in row}) > 3
    assert scores[0][0] > scores[0][1] > scores[0][2]


def test_a_lost_rank_is_named():
    lost = r"process 1 \(exit status 9\) of 2 ended before the work was done"
    with pytest.raises(UserError, match=lost), parallel.joined(2, ["-c", LOST]):
        dist.recv(torch.zeros(1), 1)
    assert "RANK" not in os.environ and not dist.is_initialized()


def test_a_rank_that_ends_before_it_joins_is_named_at_once(monkeypatch):
    monkeypatch.setattr(parallel, "TIMEOUT", timedelta(seconds=30))  # of the thread that is left waiting for it
    early = "process 1 of 2 ended with exit status 7 before it had joined"
    with pytest.raises(UserError, match=early), parallel.joined(2, ["-c", "raise SystemExit(7)"]):
        pass
    assert "RANK" not in os.environ and not dist.is_initialized()


@pytest.mark.parametrize(
    ("words", "raised"),
    [("gloo/linux.cc: Cannot allocate memory", RuntimeError), ("[gloo] Connection closed by peer", ProcessLost)],
)
def test_what_stops_processes_from_joining_is_told_as_what_it_is(monkeypatch, words, raised):
    def join(children):
        raise RuntimeError(words)

    monkeypatch.setattr(parallel, "_join", join)
    with pytest.raises(raised, match=r"of 2 ended|Cannot allocate"), parallel.joined(2, ["-c", "pass"]):
        pass


def test_shards_read_their_own_documents_alone(place):
    bank = Bank.open(place / "bank")
    half = [bank.shard(rank, 2) for rank in range(2)]
    keys = [sum(layer.routing.nbytes for segment in shard.segments for layer in segment.layers) for shard in half]
    whole = sum(layer.routing.nbytes for segment in bank.segments for layer in segment.layers)
    assert sum(keys) == whole and max(keys) <= 0.7 * whole
    assert not torch.isin(half[0].doc_ids, half[1].doc_ids).any()
    assert isinstance(bank.document(int(half[1].doc_ids[0])), Document)
