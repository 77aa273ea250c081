"""Timing training against context: what is timed is a step of either system, and rows that are there stay."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from msa.bench import training_time
from msa.bench.training_time import PHASE, SYSTEMS, Timed
from msa.training.objectives import next_token
from msa_base.errors import UserError
from reports import training_time as report


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> list[dict[str, str]]:
    monkeypatch.setattr(sys, "argv", ["training_time", "--out", str(out), "--threads", "1", *words])
    training_time.main()
    return list(csv.DictReader(out.open()))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_reads_the_context_and_trains_what_it_passes(system: str) -> None:
    case = Timed(system, 512)
    model, batch = case.model(), case.batch()
    assert batch.tokens == 512 + 128
    figures = next_token(model, batch, PHASE, 0.1)
    assert ("aux_loss" in figures) == (system == "msa")
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_what_is_there_is_not_timed_again_and_exponents_have_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.csv"
    first = run(monkeypatch, out, "--contexts", "256", "512", "--repeats", "2")
    more = run(monkeypatch, out, "--contexts", "256", "512", "1024", "--repeats", "2")
    assert len(first) == 8 and more[:8] == first and len(more) == 12
    frame = report.read(out)
    made = report.table(frame.assign(processor_seconds=frame["processor_seconds"] + 2))
    assert [row[1] for row in made.rows] == [
        *(f"{n} tokens (median, extremes)" for n in ("256", "512", "1,024"))
    ] * 2 + [report.EXPONENT] * 2
    for *_, found, n in made.rows[-2:]:
        assert n == 6 and found.low <= found.value <= found.high


def test_a_context_that_is_no_whole_number_of_documents_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="multiple of 256"):
        run(monkeypatch, tmp_path / "t.csv", "--contexts", "300")
