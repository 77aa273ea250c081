"""Paired recall of two retrievers: means, interval and verdict, and the command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from msa_base.errors import UserError
from msa_base.tables import write_json
from reports import recall
from reports.statistics import Interval


def rows(first: list[float], second: list[float], name: str = "musique") -> list[dict]:
    return [
        {"set": name, "question_id": str(place), "metric": "recall@5", "hipporag": one, "dense": other}
        for place, (one, other) in enumerate(zip(first, second, strict=True))
    ]


def test_a_difference_has_the_interval_of_its_pairs() -> None:
    (line,) = recall.compare(rows([1, 1, 0.5, 1] * 20, [0.5, 1, 0.5, 0.5] * 20), "hipporag", "dense").rows
    name, metric, n, hipporag, dense, found, sign_test, verdict = line
    assert sign_test is None  # half a point is no 0/1 score
    assert (name, metric, n, verdict) == ("musique", "recall@5", 80, "better")
    assert (hipporag, dense, found.value) == (pytest.approx(87.5), pytest.approx(62.5), pytest.approx(25))
    assert 15 < found.low < 25 < found.high < 35


def test_sets_are_compared_each_for_itself() -> None:
    table = recall.compare(rows([1, 0], [0, 1]) + rows([1, 1, 0], [1, 0, 0], "hotpotqa"), "hipporag", "dense")
    assert [(name, n) for name, _, n, *_ in table.rows] == [("musique", 2), ("hotpotqa", 3)]


def test_verdicts_come_from_intervals() -> None:
    def said(low: float, high: float, n: int = 32) -> str:
        return recall.verdict(Interval((low + high) / 2, low, high, n, ""), 32)

    assert said(-3, 0.5) == "no different beyond noise"
    assert said(-3, -0.5) == "worse"
    assert said(-3, -0.5, n=31) == "inconclusive: 31 questions, a verdict needs 32"


def test_three_of_five_are_no_verdict() -> None:
    (line,) = recall.compare(rows([1, 1, 1, 1, 0], [0, 0, 0, 1, 0]), "hipporag", "dense").rows
    assert line[-1].startswith("inconclusive") and line[-2] == pytest.approx(0.25)
    assert line[-3].low < 0 < line[-3].high


@pytest.mark.parametrize(
    "broken",
    [
        [], [{"set": "a", "metric": "b", "dense": 1.0}], ["row"], rows([None], [1.0]), rows([5.0], [1.0]),
        rows([-0.1], [1.0]), rows([float("inf")], [1.0]), rows([float("nan")], [1.0]), rows(["x"], [1.0]),
        rows([1.0], [0.0]) * 40, [{**rows([1.0], [0.0])[0], "set": ["a"], "dense": [1]}],
        [{**rows([1.0], [0.0])[0], "set": None}], {"rows": 7}, None,
    ],
)  # fmt: skip
def test_broken_rows_are_said_to_be(broken: list) -> None:
    with pytest.raises(UserError, match=r"make .* again"):
        recall.compare(broken, "hipporag", "dense")


def test_the_command_fails_where_the_first_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for first, second, code in (([0.0] * 40 + [1.0], [1.0] * 40 + [0.5], 1), ([1.0, 0.5] * 20, [0.5, 1.0] * 20, 0)):
        write_json(rows(first, second), tmp_path / "rows.json")
        monkeypatch.setattr(sys, "argv", ["recall", str(tmp_path / "rows.json")])
        assert recall.main() == code
        assert ("worse" if code else "no different beyond noise") in capsys.readouterr().out


def test_the_command_compares_what_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_json([row | {"BM25": 1.0} for row in rows([0.0] * 40, [0.0] * 40)], tmp_path / "rows.json")
    monkeypatch.setattr(sys, "argv", ["recall", str(tmp_path / "rows.json"), "--first", "BM25"])
    assert recall.main() == 0 and "BM25 is" in capsys.readouterr().out
