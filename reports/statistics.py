"""Intervals: of a mean, of a paired difference, ratio or loss, of a macro mean, and of a log-log slope.

Questions are the unit, unless ``groups`` names larger ones (the replicate heads that questions share). Every interval
is two-sided at :data:`LEVEL`. Rules, in this order:

1. A mean of values that are all 0 or 1 gets Wilson's interval: the bootstrap undercovers near 0 and 1, and at 0 or 1
   itself its width is zero.
2. A mean without spread (all values equal) gets Wilson's interval too, which is the widest for a share of that mean.
3. Anything else gets the percentile bootstrap with a fixed seed. Resampling n units is drawing how often each
   *distinct* unit appears (a multinomial), so the cost follows the distinct values, not the questions.
4. Comparisons are bootstrapped over the paired questions. Where one side has no spread the bootstrap would take it as
   known exactly, so the two sides' own intervals are combined instead: differences by Newcombe's square-and-add, ratios by
   the quotients of their ends. Both are conservative: a constant side has no correlation to gain from.

Sources: Wilson 1927; Newcombe 1998 (method 10); Efron and Tibshirani 1993, chapters 13 and 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 20260323


@dataclass(frozen=True)
class Interval:
    """A point and its interval; ``n`` counts the units, ``method`` names how it was made. ``inf`` is a ratio over 0."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit (a positive factor)."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n, self.method)


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share ``mean`` seen on ``n`` units.

    Raises:
        ValueError: no units, or a mean outside 0 to 1.
    """
    if n < 1 or not 0 <= mean <= 1:
        raise ValueError(f"Wilson's interval needs n >= 1 and a share, found n={n} and {mean}")
    z = stats.norm.ppf(0.5 + LEVEL / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    margin = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # rounding must not leave the point outside its own interval at 0 and 1
    return min(max(0.0, centre - margin), mean), max(min(1.0, centre + margin), mean)


def mean_interval(values: Sequence[float], groups: Sequence | None = None, scale: float = 1.0) -> Interval:
    """Interval of the mean of one value a question.

    Args:
        values: values in 0 to ``scale``.
        groups: a label for each value; whole groups are resampled then.
        scale: the largest possible value (1 for shares, 5 for a judge's points).

    Raises:
        ValueError: no values, or values outside 0 to ``scale``.
    """
    column = np.asarray(values, dtype=float) / scale
    if column.size == 0 or column.min() < 0 or column.max() > 1:
        raise ValueError(f"expected values from 0 to {scale:g}, found {len(column)} of them")
    mean = float(column.mean())
    binary = bool(np.isin(column, (0.0, 1.0)).all())
    if np.ptp(column) == 0 or (binary and groups is None):
        low, high = wilson(mean, len(column))
        return Interval(mean, low, high, len(column), "Wilson").scaled(scale)
    low, high = _percentiles(_draws([column[:, None]], groups)[:, 0])
    return Interval(mean, low, high, len(column), "bootstrap").scaled(scale)


def macro_interval(strata: Sequence[Sequence[float]]) -> Interval:
    """Interval of the mean over tasks of each task's mean (shares), each stratum resampled for itself.

    A stratum without spread adds Wilson's margins, divided by the number of strata, in squares.

    Raises:
        ValueError: no strata or an empty one.
    """
    columns = [np.asarray(values, dtype=float) for values in strata]
    if not columns or any(column.size == 0 for column in columns):
        raise ValueError("a macro mean needs strata with values")
    mean = float(np.mean([column.mean() for column in columns]))
    low, high = _percentiles(_draws([column[:, None] for column in columns])[:, 0])
    below, above = (mean - low) ** 2, (high - mean) ** 2
    for column in columns:
        if np.ptp(column) == 0:
            low, high = wilson(float(column[0]), len(column))
            below += ((column[0] - low) / len(columns)) ** 2
            above += ((high - column[0]) / len(columns)) ** 2
    low, high = max(0.0, mean - math.sqrt(below)), min(1.0, mean + math.sqrt(above))
    return Interval(mean, low, high, sum(map(len, columns)), "stratified bootstrap")


Pairs = np.ndarray | Sequence[np.ndarray]


def difference(pairs: Pairs, groups: Sequence | None = None) -> Interval:
    """Paired interval of mean(first) - mean(second); :func:`_compare` says what ``pairs`` is."""
    return _compare(pairs, groups, lambda first, second: first - second, _newcombe)


def ratio(pairs: Pairs, groups: Sequence | None = None) -> Interval:
    """Paired interval of mean(first) / mean(second): infinite where only the second mean is 0, nan where both are."""
    return _compare(pairs, groups, _quotient, _quotient_of_ends)


def gain(pairs: Pairs, groups: Sequence | None = None) -> Interval:
    """Paired interval of the relative gain mean(first) / mean(second) - 1, as a share."""
    found = ratio(pairs, groups)
    return Interval(found.value - 1, found.low - 1, found.high - 1, found.n, found.method)


def loss(pairs: Pairs, groups: Sequence | None = None) -> Interval:
    """Paired interval of the relative loss 1 - mean(first) / mean(second), as a share: first is after, second before."""
    found = ratio(pairs, groups)
    return Interval(1 - found.value, 1 - found.high, 1 - found.low, found.n, found.method)


def rank_correlation(pairs: np.ndarray) -> Interval:
    """Spearman's correlation of two columns [questions, 2], ties at their mean rank; nan where a side has no spread.

    The ranks are those of the whole sample in every resample.
    """
    return _from_moments(np.column_stack([stats.rankdata(column) for column in pairs.T]), _correlation)


def quadratic_kappa(pairs: np.ndarray) -> Interval:
    """Cohen's kappa of two raters' points [questions, 2] with quadratic weights; nan where both give everything the same.

    With d the raters' difference, kappa = 1 - E[d^2] / E'[d^2], E' taken as if they were independent (Cohen 1968).
    """
    return _from_moments(np.asarray(pairs, dtype=float), _kappa)


def _from_moments(pairs: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """Percentile bootstrap of a statistic of the five moments (x, y, xx, yy, xy) of two columns."""
    x, y = pairs.T
    moments = np.column_stack([x, y, x * x, y * y, x * y])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(moments.mean(axis=0)))
        low, high = _percentiles(statistic(_draws([moments])))
    return Interval(value, low, high, len(pairs), "bootstrap")


def _correlation(moments: np.ndarray) -> np.ndarray:
    x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    spread = np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0)
    return (xy - x * y) / np.sqrt(np.where(spread > 1e-9, spread, np.nan))


def _kappa(moments: np.ndarray) -> np.ndarray:
    x, y, xx, yy, xy = np.moveaxis(moments, -1, 0)
    by_chance = xx + yy - 2 * x * y
    return 1 - (xx + yy - 2 * xy) / np.where(by_chance > 1e-9, by_chance, np.nan)


STATISTICS: dict[str, Callable[..., Interval]] = {"difference": difference, "ratio": ratio, "gain": gain, "loss": loss}


def slope_interval(sizes: Sequence[float], costs: Sequence[float]) -> Interval:
    """Slope of log(cost) against log(size) by least squares, with Student's interval; ``n`` counts the points.

    Raises:
        ValueError: fewer than three points (no interval can be had) or a value that is not positive.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(costs, dtype=float)
    if len(x) < 3 or x.min() <= 0 or y.min() <= 0:
        raise ValueError("a log-log slope with an interval needs three points or more, all positive")
    fit = stats.linregress(np.log(x), np.log(y))
    margin = stats.t.ppf(0.5 + LEVEL / 2, len(x) - 2) * fit.stderr
    return Interval(float(fit.slope), float(fit.slope - margin), float(fit.slope + margin), len(x), "least squares")


def _compare(
    pairs: Pairs,
    groups: Sequence | None,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    combine: Callable[[Interval, Interval], tuple[float, float]],
) -> Interval:
    """Interval of a statistic of two means over the same questions.

    Args:
        pairs: shares [questions, 2], or a list of such arrays: strata (tasks) that count equally.
        groups: labels for the rows of a single array.

    Raises:
        ValueError: no strata or an empty one.
    """
    strata = [pairs] if isinstance(pairs, np.ndarray) else list(pairs)
    if not strata or any(len(stratum) == 0 for stratum in strata):
        raise ValueError("a comparison needs questions that both sides answered")
    n = sum(map(len, strata))
    first, second = (np.mean([stratum[:, side].mean() for stratum in strata]) for side in (0, 1))
    value = float(statistic(first, second))
    if any(np.ptp(stratum[:, side]) == 0 for stratum in strata for side in (0, 1)):
        low, high = combine(*(macro_interval([stratum[:, side] for stratum in strata]) for side in (0, 1)))
        return Interval(value, low, high, n, "two intervals combined")
    draws = _draws(strata, groups)
    return Interval(value, *_percentiles(statistic(draws[:, 0], draws[:, 1])), n, "paired bootstrap")


def _draws(strata: list[np.ndarray], groups: Sequence | None = None) -> np.ndarray:
    """Resampled means [RESAMPLES, columns] of tables [units, columns], averaged over the strata."""
    generator = np.random.default_rng(SEED)
    total = np.zeros((RESAMPLES, strata[0].shape[1]))
    for table in strata:
        units = np.column_stack([np.ones(len(table)), table])
        if groups is not None:
            codes = np.unique(np.asarray(groups), return_inverse=True)[1]
            units = np.stack([np.bincount(codes, column) for column in units.T], axis=1)
        distinct, counts = np.unique(units, axis=0, return_counts=True)
        times = generator.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        sums = times @ distinct
        total += sums[:, 1:] / sums[:, :1]
    return total / len(strata)


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if known.size == 0:
        return math.nan, math.nan
    # "nearest" keeps infinite draws infinite instead of interpolating to nan
    low, high = np.quantile(known, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], method="nearest")
    return float(low), float(high)


def _quotient(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(first) / np.asarray(second)


def _newcombe(first: Interval, second: Interval) -> tuple[float, float]:
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return value - below, value + above


def _quotient_of_ends(first: Interval, second: Interval) -> tuple[float, float]:
    return float(_quotient(first.low, second.high)), float(_quotient(first.high, second.low))
