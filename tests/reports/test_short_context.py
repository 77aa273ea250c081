"""Short context before and after: intervals of what msa.bench.short_context prints, which never have width zero."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from msa_base.errors import UserError, run_command
from reports import short_context
from reports.statistics import endless_difference

FOUND = {
    "nats_per_token": {"before": [1.0, 2.0, 3.0, 4.0], "after": [1.1, 2.3, 3.2, 4.2]},
    "right": {"before": [1.0, 1.0, 1.0], "after": [1.0, 1.0, 1.0]},
}


def test_the_loss_has_a_student_interval_and_answers_without_a_difference_have_a_wide_one() -> None:
    nats, right = short_context.compare(FOUND).rows
    assert nats[:4] == ("nats per token", 4, 2.5, pytest.approx(2.7))
    # differences 0.1, 0.3, 0.2, 0.2: mean 0.2, s = 0.0816, t(3) = 3.182, margin 0.1299
    assert (nats[4].value, nats[4].low, nats[4].high) == pytest.approx((0.2, 0.0701, 0.3299), abs=1e-4)
    assert right[1:4] == (3, 100, 100) and right[4].value == 0 and right[5] == 1
    assert right[4].low < -30 and right[4].high > 30


@pytest.mark.parametrize("pairs", [[[1.0, 2.0]], [[1.0, 1.0]] * 5, [[1.5, 1.0]] * 2])
def test_what_has_no_spread_has_no_narrow_interval(pairs: list) -> None:
    found = endless_difference(np.array(pairs))
    assert (found.low, found.high) == (-math.inf, math.inf) and found.value == pairs[0][0] - pairs[0][1]


@pytest.mark.parametrize(
    "change",
    [
        {"nats_per_token": None}, {"nats_per_token": {"before": [1.0]}}, {"right": {"before": [0.5], "after": [1.0]}},
        {"nats_per_token": {"before": [1.0, 2.0], "after": [1.0]}}, {"nats_per_token": {"before": [], "after": []}},
        {"nats_per_token": {"before": [math.nan], "after": [1.0]}}, {"right": {"before": [True], "after": ["x"]}},
    ],
)  # fmt: skip
def test_what_is_no_comparison_is_one_line(
    change: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"not what msa\.bench\.short_context prints"):
        short_context.compare(FOUND | change)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(FOUND | change))
    monkeypatch.setattr(sys, "argv", ["reports.short_context", str(path)])
    with pytest.raises(SystemExit) as ended:
        run_command(short_context.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(f"error: {path}: ") and said.count("\n") == 1
