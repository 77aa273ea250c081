"""The simulation of coverage, reduced: every kind of interval covers, and is not much wider than the field's.

``python -m reports.coverage`` is the whole. Draws are seeded, so that this never fails by chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from reports import coverage
from reports.coverage import Case, Found, cases, judge, simulate
from reports.statistics import Interval

DRAWS = 15


def short(found: Found, draws: int) -> bool:
    """Whether a case covers less than it must, by more than 3.5 standard errors of the simulation."""
    least = found.case.least
    return found.coverage < least - 3.5 * np.sqrt(least * (1 - least) / draws)


@pytest.mark.parametrize("statistic", ["mean", "difference", "ratio", "macro mean"])
@pytest.mark.parametrize("n", [16, 32, 128, 512])
def test_intervals_cover(statistic: str, n: int) -> None:
    chosen = [case for case in cases([statistic], [n]) if n < 512 or case.share in (0.9, 1.0)]
    found = [simulate(case, DRAWS) for case in chosen]
    for few, least in ((False, 0.93), (True, 0.90)):
        covered = [it.average for it in found if (0 < it.case.heads < 8) is few]
        assert not covered or np.mean(covered) >= least
    assert not any(short(it, DRAWS) for it in found)
    assert all(it.width > 0 for it in found)


def test_slopes_cover() -> None:
    found = [simulate(case, 300) for case in cases(["slope"])]
    assert min(it.coverage for it in found) >= 0.93
    assert max(it.ratio for it in found) <= 1.3


@pytest.mark.parametrize(
    ("case", "field"),
    [
        (Case("mean", 32, 0.9), "Wilson"),
        (Case("mean", 16, 1.0), "Wilson"),
        (Case("mean", 128, 0.9, parts=4), "Student"),
        (Case("mean", 128, 0.9, heads=8), "Student"),
        (Case("mean", 128, 0.99, heads=4), "Wilson, effective n"),
        (Case("difference", 32, 0.9), "Tango"),
        (Case("difference", 128, 0.99), "Newcombe 10"),
        (Case("difference", 32, 0.5, parts=4), "Student"),
        (Case("difference", 128, 0.9, heads=8), "Student"),
        (Case("ratio", 128, 0.9), "Bonett-Price"),
        (Case("ratio", 128, 0.5, parts=4), "Student, log ratio"),
        (Case("macro mean", 128, 0.9), "Wilson, square-and-add"),
    ],
)
def test_intervals_are_not_much_wider_than_those_of_the_field(case: Case, field: str) -> None:
    _, own, beside = coverage.SIMULATED[case.statistic](case, 60, 0.01, np.random.default_rng(1))
    widths = [np.median(high - low) for low, high in (own, beside[field])]
    assert widths[0] <= 1.3 * widths[1]


def test_the_field_is_what_it_says() -> None:
    """Newcombe's worked example; Tango's ends are where the score statistic, maximised by search, is the quantile."""
    pairs = np.repeat([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [36, 12, 2], axis=0)[None]
    low, high = coverage._newcombe(pairs)
    assert (low[0], high[0]) == pytest.approx((0.0569, 0.3404), abs=2e-4)
    for delta in np.concatenate(coverage._tango(pairs)):

        def lost(second: float, delta: float = delta) -> float:
            return -12 * np.log(second + delta) - 2 * np.log(second) - 36 * np.log(1 - 2 * second - delta)

        least = optimize.minimize_scalar(lost, bounds=(1e-9, (1 - delta) / 2 - 1e-9), method="bounded").x
        score = (10 - 50 * delta) / np.sqrt(50 * (2 * least + delta * (1 - delta)))
        assert abs(score) == pytest.approx(1.96, abs=0.01)
    equal = np.ones((1, 16, 2))
    low, high = coverage._tango(equal)
    assert (low[0], high[0]) == pytest.approx((-3.8415 / 19.8415, 3.8415 / 19.8415), abs=1e-3)


def test_an_interval_that_falls_short_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(coverage, "SHARES", (0.9,))
    options = ["--draws", "20", "--sizes", "16", "--statistics", "mean", "--output"]
    monkeypatch.setattr(sys, "argv", ["coverage", *options, str(tmp_path / "a.csv")])
    assert coverage.main() == 0
    assert len(pd.read_csv(tmp_path / "a.csv")) == 6
    assert capsys.readouterr().out.count("covers") >= 6
    monkeypatch.setattr(coverage, "mean_interval", lambda values, groups: Interval(0, 0.6, 0.61, 16, ""))
    assert coverage.main() == 1
    assert "6 short of the coverage asked for" in capsys.readouterr().out


def test_a_case_that_falls_short_by_chance_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked = Case("mean", 16, 0.9), []

    def simulated(case: Case, draws: int, seed: int = 0) -> Found:
        asked.append((draws, seed))
        return Found(case, 0.92 if seed == 0 else 0.94, 0.95, 0.1, "Wilson", 1.4)

    monkeypatch.setattr(coverage, "simulate", simulated)
    assert judge(case, 20).verdict == "covers, wide" and asked == [(20, 0), (200, 1)]


def test_a_simulation_is_its_seed() -> None:
    case = Case("ratio", 16, 0.9, parts=4, heads=4)
    assert simulate(case, 5, seed=3) == simulate(case, 5, seed=3) != simulate(case, 5, seed=4)
    assert isinstance(simulate(case, 5), Found)
