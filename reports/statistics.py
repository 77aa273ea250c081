"""Intervals of means, macro means, paired differences, ratios, gains and losses, correlations and slopes.

One method makes all but the slopes: the **nonparametric likelihood of scores with known ends**. A statistic is a number
theta with E[top - theta * bottom] = 0: a mean (top = score, bottom = 1), a difference (top = first - second), a ratio
(top = first, bottom = second). The likelihood ratio of a theta compares the best distribution that has this theta with
what was seen; mass may lie on any score that is possible, seen or not. The interval is every theta that the chi-square
quantile does not reject. It reads the spread and the skewness from the data, stays within what is possible, and is
never of width zero: a hundred right answers leave room for the wrong one that was not drawn.

1. Against each theta stands **half a question** more, at the worst possible score. It is the continuity correction of
   small counts: coverage of a share is 0.944 or more at every share and n, where Wilson's falls to 0.85.
2. **Heads**: questions of one head are not independent. Every question then counts as 1 / design effect (the variance
   by leaving out one head at a time, over that of independent questions, never below ``LEAST_WITHIN_HEAD`` allows).
3. **Few units**: where the spread is estimated (scores between 0 and 1, or heads) Student's quantile takes the place
   of the normal one, by counting every question as (normal / Student)^2.
4. **Macro means** weigh tasks equally; only the spread within a task counts.

Slopes are of log cost on log size, :func:`slope_interval`. Coverage and widths against the intervals of the field are
simulated by ``python -m reports.coverage``; docs/LOG.md has the figures.

Sources: Owen 2001 (empirical likelihood); Honda and Takemura 2010 (known ends); Chen, Variyath and Abraham 2008 (an
added observation); Rao and Scott 1981, Korn and Graubard 1998 (design effect, Student's quantile).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
ROUNDED = 1e-9  # that a mean of scores may be off for rounding
UNSEEN = 0.5  # questions at the worst score, against every value that is tried
FEW = 3.0
LEAST_WITHIN_HEAD = 0.004  # correlation of a head's questions: heads that differ by 0.03 at a share of 0.5 have it
ONE_HEAD = 0.05  # the same where there is one head, and so nothing to tell it from
LEAST_COST_ERROR = 0.01  # of a logarithm: no cost is taken as known better than to one part in a hundred
Z = float(stats.norm.ppf(0.5 + LEVEL / 2))


@dataclass(frozen=True)
class Interval:
    """A point and its interval. ``n`` counts the questions (or costs), ``units`` what was drawn independently.

    A ratio over 0 is ``inf``, of 0 over 0 nan.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    units: int | None = None

    def scaled(self, factor: float, shift: float = 0.0) -> Interval:
        """The same interval in another unit: ``factor`` times, plus ``shift``."""
        low, high = sorted((self.low * factor + shift, self.high * factor + shift))
        return replace(self, value=self.value * factor + shift, low=low, high=high)


Pairs = np.ndarray | Sequence[np.ndarray]  # shares [questions, 2], or several such tables: tasks that count equally
Groups = Sequence | None  # a head of each question; of several tables a list of such, where None are questions alone


def mean_interval(values: Sequence[float], scale: float = 1.0, groups: Groups = None) -> Interval:
    """Interval of the mean of one value a question; ``scale`` is the largest possible (1 for shares, 5 for points).

    No values, or values outside 0 to ``scale``, are a ValueError.
    """
    column = np.asarray(values, dtype=float) / scale
    if column.size == 0 or not (column.min() >= 0 and column.max() <= 1):
        raise ValueError(f"expected values from 0 to {scale:g}, found {len(column)} of them")
    return _mean([column], [groups], 0.0).scaled(scale)


def macro_interval(strata: Sequence[Sequence[float]], groups: Groups = None, level: float = LEVEL) -> Interval:
    """Interval of the mean over tasks of each task's mean (shares). No strata or an empty one are a ValueError."""
    columns = [np.asarray(values, dtype=float) for values in strata]
    if not columns or any(column.size == 0 for column in columns):
        raise ValueError("a macro mean needs strata with values")
    return _mean(columns, groups or [None] * len(columns), 0.0, level=level)


def difference(pairs: Pairs, groups: Groups = None, level: float = LEVEL) -> Interval:
    """Paired interval of mean(first) - mean(second)."""
    tables, heads = _tables(pairs, groups)
    return _mean([table[:, 0] - table[:, 1] for table in tables], heads, -1.0, all(map(_is_binary, tables)), level)


def endless_difference(pairs: np.ndarray) -> Interval:
    """Paired Student interval of mean(first) - mean(second) of values without ends, such as nats.

    All of one difference say nothing of its spread: the interval is then infinite, as it is of one pair.
    """
    _check_finite(pairs)
    table = np.asarray(pairs, dtype=float)
    deltas = table[:, 0] - table[:, 1]
    value, n = float(deltas.mean()), len(deltas)
    margin = math.inf
    if n > 1 and np.ptp(deltas) > 0:
        margin = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * deltas.std(ddof=1) / math.sqrt(n))
    return Interval(value, value - margin, value + margin, n, f"Student's t over {n} pairs", n)


def ratio(pairs: Pairs, groups: Groups = None, level: float = LEVEL) -> Interval:
    """Paired interval of mean(first) / mean(second): infinite where only the second mean is 0, nan where both are."""
    tables, heads = _tables(pairs, groups)
    corners = np.array([[0.0, 1.0], [1.0, 0.0]])
    sample = _Sample.of(tables, heads, corners, all(map(_is_binary, tables)), level)
    first, second = sample.points.T @ sample.counts
    if second == 0:
        low = sample.limit(0.0, math.inf) if first else 0.0
        return sample.interval(math.inf if first else math.nan, low, math.inf)
    value = first / second
    low = sample.limit(0.0, value)
    over = sample.swapped().limit(0.0, 1 / value if value else math.inf)  # of second / first
    return sample.interval(value, low, 1 / over if over else math.inf)


def gain(pairs: Pairs, groups: Groups = None, level: float = LEVEL) -> Interval:
    """Paired interval of the relative gain mean(first) / mean(second) - 1, as a share."""
    return ratio(pairs, groups, level).scaled(1, -1)


def loss(pairs: Pairs, groups: Groups = None, level: float = LEVEL) -> Interval:
    """Paired interval of the relative loss from second to first, 1 - mean(first) / mean(second), as a share."""
    return ratio(pairs, groups, level).scaled(-1, 1)


def compare(statistic: str, pairs: Pairs, groups: Groups = None, level: float = LEVEL) -> Interval:
    """A comparison by name: a ratio as it is, a difference in points, a gain or loss in per cent."""
    made = {"ratio": ratio, "difference": difference, "gain": gain, "loss": loss}[statistic](pairs, groups, level)
    return made if statistic == "ratio" else made.scaled(100)


def mcnemar(pairs: Pairs) -> float | None:
    """Exact two-sided p of as many questions that only one side has right (McNemar 1947); None for other scores."""
    table = np.concatenate(_tables(pairs, None)[0])
    if not _is_binary(table):
        return None
    wins, losses = int(np.sum(table[:, 0] > table[:, 1])), int(np.sum(table[:, 0] < table[:, 1]))
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def rank_correlation(pairs: np.ndarray, groups: Groups = None) -> Interval:
    """Spearman's correlation of two columns [questions, 2], ties at their mean rank; nan where a side has no spread.

    With standard scores u and v it is the ratio of E[u v] to E[u^2 + v^2] / 2, whose terms are its influence function.
    """
    _check_finite(pairs)
    ranks = np.column_stack([stats.rankdata(column) for column in np.asarray(pairs).T])
    spread = ranks.std(axis=0)
    if not spread.all():
        return Interval(math.nan, -1.0, 1.0, len(ranks), "undefined: one side gives everything the same", len(ranks))
    u, v = ((ranks - ranks.mean(axis=0)) / spread).T
    end = float(np.abs(u).max() * np.abs(v).max())
    return _agreement(u * v, (u * u + v * v) / 2, np.array([[-end, end], [end, end]]), groups)


def quadratic_kappa(pairs: np.ndarray, groups: Groups = None) -> Interval:
    """Cohen's kappa of two raters' points [questions, 2], quadratic weights; nan where both give everything the same.

    With d the raters' difference, kappa = 1 - E[d^2] / E'[d^2], E' taken as if they were independent (Cohen 1968).
    """
    _check_finite(pairs)
    x, y = np.asarray(pairs, dtype=float).T
    by_chance = (x - y.mean()) ** 2 + (y - x.mean()) ** 2 - (x.mean() - y.mean()) ** 2
    if by_chance.mean() < 1e-9:
        return Interval(math.nan, -1.0, 1.0, len(x), "undefined: both give everything the same", len(x))
    ends = np.ptp(np.concatenate([x, y])) ** 2 * np.array([[-1.0, 1.0], [1.0, 1.0]])
    return _agreement(by_chance - (x - y) ** 2, by_chance, ends, groups)


def _check_finite(pairs: np.ndarray) -> None:
    if len(pairs) == 0 or not np.isfinite(np.asarray(pairs, dtype=float)).all():
        raise ValueError("expected pairs, all finite")


def _agreement(top: np.ndarray, bottom: np.ndarray, corners: np.ndarray, groups: Groups) -> Interval:
    """A ratio of two means that lies from -1 to 1."""
    sample = _Sample.of([np.column_stack([top, bottom])], [groups], corners, False)
    value = float(top.mean() / bottom.mean())
    return sample.interval(value, sample.limit(-1.0, value), -sample.negated().limit(-1.0, -value))


def _mean(
    columns: list[np.ndarray], groups: Sequence[Groups], least: float, binary: bool | None = None, level: float = LEVEL
) -> Interval:
    """Interval of the mean over strata of means of scores from ``least`` to 1."""
    binary = all(map(_is_binary, columns)) if binary is None else binary
    tables = [np.column_stack([column, np.ones(len(column))]) for column in columns]
    sample = _Sample.of(tables, groups, np.array([[least, 1.0], [1.0, 1.0]]), binary, level)
    value = float(np.mean([column.mean() for column in columns]))
    return sample.interval(value, sample.limit(least, value), -sample.negated().limit(-1.0, -value))


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _tables(pairs: Pairs, groups: Groups) -> tuple[list[np.ndarray], list[Groups]]:
    single = isinstance(pairs, np.ndarray)
    tables = [np.asarray(table, dtype=float) for table in ([pairs] if single else pairs)]
    if not tables or any(len(table) == 0 for table in tables):
        raise ValueError("a comparison needs questions that both sides answered")
    if not all(((table >= -ROUNDED) & (table <= 1 + ROUNDED)).all() for table in tables):  # neither is NaN
        raise ValueError("expected scores from 0 to 1")
    return tables, [groups] if single else list(groups or [None] * len(tables))


@dataclass(frozen=True)
class _Sample:
    """Distinct points (top, bottom) [K, 2], how many questions each counts as [K], and the possible ends [C, 2]."""

    points: np.ndarray
    counts: np.ndarray
    corners: np.ndarray
    reach: float
    rejects: float
    n: int
    units: int
    heads: bool

    @classmethod
    def of(
        cls, tables: list[np.ndarray], groups: Sequence[Groups], corners: np.ndarray, binary: bool, level: float = LEVEL
    ) -> _Sample:
        """The strata as one sample whose mean is their mean, and whose spread is the spread within them."""
        n, means = sum(map(len, tables)), [table.mean(axis=0) for table in tables]
        overall = np.mean(means, axis=0)
        weights = [n / (len(tables) * len(table)) for table in tables]
        moved = [overall + w * (t - m) for w, t, m in zip(weights, tables, means, strict=True)]
        ends = np.concatenate([overall + w * (corners - m) for w, m in zip(weights, means, strict=True)])
        value = overall[0] / overall[1] if overall[1] else 0.0
        residuals = [part[:, 0] - value * part[:, 1] for part in moved]
        parts = [_spread(residual, heads) for residual, heads in zip(residuals, groups, strict=True)]
        heads = any(part.heads for part in parts)
        known = binary and not heads and all(it.units > 1 for it in parts)
        count_as, rejects = _weigh(parts, n, known, 0.5 + level / 2)
        points, counts = np.unique(np.concatenate(moved), axis=0, return_counts=True)
        reach = math.inf if binary else _reach(residuals)
        return cls(points, counts * count_as, ends, reach, rejects, n, sum(part.units for part in parts), heads)

    def swapped(self) -> _Sample:
        """Top and bottom exchanged."""
        return replace(self, points=self.points[:, ::-1], corners=self.corners[:, ::-1])

    def negated(self) -> _Sample:
        """The sign of the top turned."""
        return replace(self, points=self.points * (-1, 1), corners=self.corners * (-1, 1))

    def limit(self, least: float, value: float) -> float:
        """The smallest theta from ``least`` to ``value`` that is not rejected."""
        sample = (part.tobytes() for part in (self.points, self.counts, self.corners))
        return _limit(*sample, self.reach, self.rejects, least, value)

    def interval(self, value: float, low: float, high: float) -> Interval:
        """The interval, which holds its point whatever was rounded."""
        method = f"likelihood over {self.n} questions"
        method += f" in {self.units} heads" if self.heads else " of one head" if self.units < self.n else ""
        known = not math.isnan(value)
        low, high = (min(low, value), max(high, value)) if known else (low, high)
        return Interval(float(value), float(low), float(high), self.n, method, self.units)


@dataclass(frozen=True)
class _Spread:
    """Of one stratum's sum: its variance by heads and as if questions were independent, and what these rest on."""

    by_heads: float
    independent: float
    least_effect: float
    units: int
    freedom: float
    heads: bool


def _spread(residuals: np.ndarray, groups: Groups) -> _Spread:
    """Jackknife variances of a stratum's sum. One head alone says nothing of heads: ``ONE_HEAD`` is assumed."""
    n = len(residuals)
    centred = residuals - residuals.mean()
    independent = float(n / max(n - 1, 1) * (centred @ centred))
    codes = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes, sums = np.bincount(codes), np.bincount(codes, centred)
    if len(sizes) in (1, n):
        effect = 1 + (n - 1) * ONE_HEAD if len(sizes) == 1 else 1.0
        return _Spread(independent * effect, independent, effect, len(sizes), max(n - 1, 1), False)
    by_heads = float((len(sizes) - 1) / len(sizes) * np.sum((sums * n / (n - sizes)) ** 2))
    squares = float(sizes @ sizes)
    least_effect = 1 + (squares / n - 1) * LEAST_WITHIN_HEAD
    return _Spread(by_heads, independent, least_effect, len(sizes), max(n * n / squares - 1, 1.0), True)


def _weigh(parts: Sequence[_Spread], n: int, known: bool, quantile: float) -> tuple[float, float]:
    """What one question counts as, and how large a likelihood ratio rejects.

    One, and the normal quantile's, where the spread is ``known`` from the mean. Else 1 / design effect, and what the
    normal likelihood makes of Student's. Heads never narrow an interval.
    """
    normal = float(stats.norm.ppf(quantile)) ** 2
    if known:
        return 1.0, normal
    independent = sum(part.independent for part in parts)
    least = sum(part.least_effect * part.independent for part in parts) / independent if independent else 0.0
    by_heads = [max(part.by_heads, part.independent / part.units) for part in parts]
    if independent:
        effect = sum(part.by_heads for part in parts) / independent
        freedom = sum(by_heads) ** 2 / sum(v * v / part.freedom for v, part in zip(by_heads, parts, strict=True))
    else:
        effect = least = float(np.mean([part.least_effect for part in parts]))
        freedom = sum(part.freedom for part in parts)
    student = float(stats.t.ppf(quantile, freedom)) ** 2
    effect = max(effect, least * normal / student)
    rejects = n / effect * math.log1p(student * effect / n)
    return min(1 / effect, rejects / (normal * least)), rejects


def _reach(residuals: Sequence[np.ndarray]) -> float:
    """How far below the mean a score may lie that was not seen, in times the farthest that was seen."""
    apart = np.abs(np.concatenate([part - np.median(part) for part in residuals]))
    squares = float(apart @ apart)
    informative = float(apart.sum() ** 2 / squares) if squares else 0.0
    return 1 / (1 - FEW / informative) if informative > FEW else math.inf


@lru_cache(maxsize=100_000)
def _limit(
    points: bytes, counts: bytes, corners: bytes, reach: float, rejects: float, least: float, value: float
) -> float:
    """Cached: cells of 0/1 scores repeat few patterns."""
    (top, bottom), (end_top, end_bottom) = (np.frombuffer(part).reshape(-1, 2).T for part in (points, corners))
    weights = np.frombuffer(counts)
    total = float(weights.sum())

    def excess(theta: float) -> float:
        scores = top - theta * bottom
        worst, mean = float(scores.min()), float(weights @ scores) / total
        possible = float(np.min(end_top - theta * end_bottom))
        farthest = max(mean - worst, float(scores.max()) - mean)  # it may lie as far off on either side
        # an endless reach times a spread that is 0 but for rounding would be anything
        lowest = possible if math.isinf(reach) else max(possible, mean - reach * farthest)
        return _evidence(scores, weights, min(worst, lowest)) - rejects

    if not value > least or excess(least) <= 0:
        return least
    if math.isinf(value):
        value = 1.0
        while excess(value) > 0:
            value *= 4
    return float(optimize.brentq(excess, least, value, xtol=1e-9, rtol=1e-9))


def _evidence(scores: np.ndarray, counts: np.ndarray, end: float) -> float:
    """Twice the log-likelihood ratio against mean(scores) = 0, for a mean above 0 and scores from ``end`` < 0 on.

    The dual: the largest over tilts of sum(counts * log(1 + tilt * scores)), with the unseen at the end.
    """
    weighted = counts * scores
    if weighted.sum() + UNSEEN * end <= 0:
        return 0.0
    if end >= 0:
        return 1e9  # no possible score is below: only a distribution that holds nothing that was seen has this mean

    def slope(tilt: float) -> float:
        return float(weighted @ (1 / (1 + tilt * scores))) + UNSEEN * end / (1 + tilt * end)

    largest = (1 - 1e-12) / -end
    tilt = optimize.brentq(slope, 0.0, largest, xtol=1e-10 * largest, rtol=1e-8)
    return 2 * (float(counts @ np.log1p(tilt * scores)) + UNSEEN * math.log1p(tilt * end))


def slope_interval(sizes: Sequence[float], costs: Sequence[float], level: float = LEVEL) -> Interval:
    """Slope of log(cost) against log(size) by least squares over the sizes; a size that repeats has repeated timings.

    Two errors are estimated, and the wider interval counts: how far the sizes' means lie from the line (all that
    differs from one size to the next, a curve too; sizes - 2 degrees of freedom, and not below ``LEAST_COST_ERROR``),
    and how far timings of one size lie apart. ``n`` counts the costs, ``units`` the sizes. Fewer than three sizes
    (they have no interval) or a value that is not positive are a ValueError.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    points, codes, repeats = np.unique(x, return_inverse=True, return_counts=True)
    if len(x) != len(y) or len(points) < 3 or not (x.min() > 0 and y.min() > 0 and np.isfinite([*x, *y]).all()):
        raise ValueError("a log-log slope with an interval needs three points or more, all positive")
    means = np.bincount(codes, np.log(y)) / repeats
    at = np.log(points) - np.log(points).mean()
    slope = float(at @ means / (at @ at))
    off_line = means - means.mean() - slope * at
    errors = [(max(float(off_line @ off_line) / (len(points) - 2), LEAST_COST_ERROR**2), len(points) - 2)]
    if len(x) > len(points):
        apart = np.log(y) - means[codes]
        freedom = len(x) - len(points)
        errors.append((float(apart @ apart) / freedom * float(np.mean(1 / repeats)), freedom))
    margin = max(stats.t.ppf(0.5 + level / 2, free) * math.sqrt(error / (at @ at)) for error, free in errors)
    method = f"least squares over {len(points)} sizes, {len(x)} timings"
    return Interval(slope, float(slope - margin), float(slope + margin), len(x), method, len(points))
