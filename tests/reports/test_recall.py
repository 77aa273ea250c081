"""Paired recall of two retrievers: means, interval and verdict, and one command for both stages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.tables import write_json
from reports import recall


def rows(first: list[float], second: list[float], name: str = "musique") -> list[dict]:
    return [
        {"set": name, "question_id": str(place), "metric": "recall@5", "hipporag": one, "dense": other}
        for place, (one, other) in enumerate(zip(first, second, strict=True))
    ]


def test_a_difference_has_the_interval_of_its_pairs() -> None:
    (line,) = recall.compare(rows([1, 1, 0.5, 1] * 20, [0.5, 1, 0.5, 0.5] * 20), "hipporag", "dense")
    assert (line["n"], line["metric"]) == (80, "recall@5")
    assert line["means"]["hipporag"].value == pytest.approx(87.5) and line["means"]["dense"].value == pytest.approx(62.5)
    assert line["difference"].value == pytest.approx(25)
    assert 15 < line["difference"].low < 25 < line["difference"].high < 35
    assert recall.verdict(line["difference"].low, line["difference"].high) == "better"


def test_sets_are_compared_each_for_itself() -> None:
    lines = recall.compare(rows([1, 0], [0, 1]) + rows([1, 1, 0], [1, 0, 0], "hotpotqa"), "hipporag", "dense")
    assert [(line["set"], line["n"]) for line in lines] == [("musique", 2), ("hotpotqa", 3)]


def test_verdicts_come_from_intervals() -> None:
    assert recall.verdict(-3, 0.5) == "no difference beyond noise"
    assert recall.verdict(-3, -0.5) == "worse"


@pytest.mark.parametrize("broken", [[], [{"set": "a", "metric": "b", "dense": 1.0}], ["row"]])
def test_broken_rows_are_said_to_be(broken: list) -> None:
    with pytest.raises(UserError, match=r"make .* again"):
        recall.compare(broken, "hipporag", "dense")


def test_the_command_fails_where_the_first_is_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for first, second, code in (([0.0] * 30 + [1.0], [1.0] * 30 + [0.5], 1), ([1.0, 0.5] * 15, [0.5, 1.0] * 15, 0)):
        write_json(rows(first, second), tmp_path / "rows.json")
        monkeypatch.setattr(sys, "argv", ["recall", "--rows", str(tmp_path / "rows.json")])
        assert recall.main() == code
        assert ("worse" if code else "no difference beyond noise") in capsys.readouterr().out
