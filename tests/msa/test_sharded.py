"""Memory Parallel: one, two and three processes give the same documents, scores and text, and a lost one is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.records import Document
from msa import checkpoint
from msa.bank import Bank
from msa.encode import Encoder

SCRIPT = f"""
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
from configs.records import Document, Question
from msa import checkpoint, parallel, sharded
from msa.bank import Bank
from msa.encode import Encoder
from msa.generate import Interleave, Limits
from msa.memory import BankMemory
from msa.keys import Queries
from msa.tiers import Tiers

ranks, directory, bank_directory, crash = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
model, prompter = checkpoint.open_model(directory)
with parallel.joined(ranks) as (rank, ranks):
    if rank == 1 and crash:
        os._exit(9)
    bank = Bank.open(bank_directory)
    if rank:
        sharded.serve(bank)
    else:
        asked = ["what is alpha", "what is the number for gamma delta beta", "number"]
        questions = [Question(str(n), text, "The answer is", 6) for n, text in enumerate(asked)]
        replaced, added = Document(107, "alpha alpha what is alpha", 15), Document(5, "gamma what is the number", 15)
        overlay = Encoder(model, prompter).segment([replaced, added])
        sees = torch.tensor([[True, True], [False, False], [False, True]])
        result = []
        for base in (bank, bank.prefix(4)):
            if ranks > 1:
                shard, scans = sharded.own_shard(base, Tiers(), torch.device("cpu"))
                memory = sharded.ShardedMemory(shard, overlay, sees, [[107, 5], [], [5]], 3, scans, len(base))
            else:
                memory = BankMemory(base, overlay, sees, [[107, 5], [], [5]], 3)
            winners = memory.winners(0, Queries(torch.linspace(-1, 1, 3 * 2 * 16).view(3, 2, 16), torch.ones(3, 2, dtype=torch.bool)))
            traces = Interleave(model, prompter, Limits(max_rounds=2), lambda q, i: base.document(i)).answer(questions, memory)
            result.append([[t.text, t.cited, t.routed] for t in traces] + [winners.scores.tolist(), winners.doc_ids.tolist()])
        if ranks > 1:
            sharded.stop()
        print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, model, prompter, tokenizer, documents):
    """A script, a checkpoint and a bank of several segments with a removed document."""
    root = tmp_path_factory.mktemp("sharded")
    (root / "ask.py").write_text(SCRIPT)
    checkpoint.save(model, root / "model")
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    encoder = Encoder(model, prompter, content_dtype="bfloat16", directory=root / "model")
    bank = encoder.build(documents, root / "bank", segment_tokens=40)
    bank.remove([documents[4].doc_id])
    assert len(bank.segments) > 2 and bank.document(107) is not None
    return root


def ask(root: Path, ranks: int, *more: str, timeout: int = 120) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "ask.py", str(ranks), root / "model", root / "bank", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_any_number_of_ranks_answers_alike(place):
    answers = {}
    for ranks in (1, 2, 3):
        done = ask(place, ranks)
        assert done.returncode == 0, done.stderr
        answers[ranks] = json.loads(done.stdout.splitlines()[-1])
    assert answers[1] == answers[2] == answers[3]
    (first, *_), scores, ids = answers[1][0][0], answers[1][0][-2], answers[1][0][-1]
    assert isinstance(first, str) and len({doc_id for row in ids for doc_id in row}) > 3
    assert scores[0][0] > scores[0][1] > scores[0][2]


def test_a_lost_rank_is_named(place):
    done = ask(place, 2, "crash")
    assert done.returncode != 0
    assert "process 1 (exit status 9) of 2 ended before the work was done" in done.stderr


def test_shards_read_their_own_documents_alone(place):
    bank = Bank.open(place / "bank")
    half = [bank.shard(rank, 2) for rank in range(2)]
    keys = [sum(layer.routing.nbytes for segment in shard.segments for layer in segment.layers) for shard in half]
    whole = sum(layer.routing.nbytes for segment in bank.segments for layer in segment.layers)
    assert sum(keys) == whole and max(keys) <= 0.7 * whole
    assert not torch.isin(half[0].doc_ids, half[1].doc_ids).any()
    assert isinstance(bank.document(int(half[1].doc_ids[0])), Document)
