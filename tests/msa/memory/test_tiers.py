"""Tiers change where a bank lies, never what it answers."""

from __future__ import annotations

import pytest
import torch

from msa.generation.decode import Session
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory, scans_of
from msa.memory.tiers import Tiers, content_bytes, placed
from msa_base.errors import UserError
from msa_base.validate import build

CPU = torch.device("cpu")


@pytest.fixture
def bank(tmp_path, model, prompter, documents):
    return Encoder(model, prompter, "bfloat16", "bfloat16").build(documents, tmp_path / "bank", segment_tokens=60)


def key_bytes(bank) -> int:
    return sum(layer.routing.nbytes for segment in bank.segments for layer in segment.layers)


def test_auto_takes_the_fastest_tier_that_holds_a_part(bank):
    keys, content = key_bytes(bank), content_bytes(bank)
    everything = {"device": keys + content, "host": keys + content}
    assert Tiers().fitted(bank, torch.device("cuda"), everything) == Tiers("device", "device")
    assert Tiers().fitted(bank, torch.device("cuda"), {"device": keys, "host": content}) == Tiers("device", "host")
    assert Tiers().fitted(bank, torch.device("cuda"), {"device": keys - 1, "host": keys}) == Tiers("host", "disk")
    # on a CPU, device and host are the same memory
    assert Tiers().fitted(bank, CPU, {"device": keys + content - 1, "host": keys + content - 1}) == Tiers(
        "device", "disk"
    )
    assert Tiers().fitted(bank, CPU, {"device": 0, "host": 0}) == Tiers("disk", "disk")


def test_a_coarse_scan_is_what_has_to_fit(bank):
    half = key_bytes(bank) // 2
    assert Tiers(scan="int8", content="disk").fitted(bank, CPU, {"device": half, "host": half}).keys == "device"
    assert Tiers(content="disk").fitted(bank, CPU, {"device": half, "host": half}).keys == "disk"


def test_a_tier_that_is_too_small_is_refused_with_the_numbers(bank):
    with pytest.raises(
        UserError,
        match=rf"keys take {key_bytes(bank):,} bytes, more than the 10 that are free on tier 'host'; choose disk",
    ):
        Tiers(keys="host").fitted(bank, CPU, {"device": 10, "host": 10})
    for wrong in ({"keys": "tape"}, {"content": "cloud"}, {"scan": "int4"}):
        with pytest.raises(UserError, match=r"must be .*found"):
            build(Tiers, wrong, "tiers")


@pytest.mark.parametrize(
    "tiers", [Tiers("disk", "disk"), Tiers("host", "disk"), Tiers("device", "host"), Tiers("device", "disk", "int8")]
)
def test_answers_do_not_depend_on_tiers(bank, model, prompter, documents, tiers):
    rows = [prompter.opening(text) for text in ("what is alpha", "number for gamma")]
    sessions = []
    for kept in (bank, placed(bank, tiers, CPU)):
        memory = BankMemory(
            kept,
            None,
            torch.zeros(2, 0, dtype=torch.bool),
            [[], []],
            3,
            scans_of(kept, tiers.scan if kept is not bank else None),
        )
        sessions.append(Session(model, rows, prompter.pad, len(prompter.head), memory))
    mapped, other = sessions
    for mine, theirs in zip(mapped.selections, other.selections, strict=True):
        assert torch.equal(mine.documents, theirs.documents) and torch.equal(mine.scores, theirs.scores)
    assert torch.equal(mapped.logits, other.logits)
    assert placed(bank, tiers, CPU).document(documents[2].doc_id).text == documents[2].text
