"""Simulated coverage and width of the intervals, beside those that the field uses for each case.

    python -m reports.coverage                                     every case, some twenty minutes of two cores
    python -m reports.coverage --draws 100 --sizes 16 32 --statistics ratio

Questions are right with a share p, scored 0/1 or in quarters (four parts), each for itself or in heads whose shares
differ by 0.03. Two sides have half of their luck in common. A row is the worst of several true losses, which
:data:`LOSSES` has (one side is constant where p is 1), of a slope the worst of :data:`SIZES_APART`. An interval of the
field counts where it covers at all of them, with some width; the ratio is to the narrowest that does, in median width.
A case that covers less than it must is drawn anew, :data:`AGAIN` times as often and from another seed, since of so many
cases some fall short by chance: that coverage counts. Ends with 1 where it is too low, too.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np
from scipy import stats
from tqdm import tqdm

from msa_base.errors import run_command
from msa_base.options import given_path
from reports.statistics import Interval, Z, difference, macro_interval, mean_interval, ratio, slope_interval
from reports.tables.table import Column, Table, plain

SIZES, SHARES, HEADS = (16, 32, 128, 512), (0.5, 0.9, 0.99, 1.0), (0, 8, 4)
AGAIN, WIDE = 10, 1.3
LOSSES, NONE_SEEN = (0.0, 0.01, 0.1), 2.3  # the last is divided by n: of ten samples one has nothing wrong
STATISTICS = ("mean", "difference", "ratio", "macro mean", "slope")
APART = 0.03  # standard deviation of the shares of heads
SIZES_APART = (0.0, 0.05, 0.2)  # of log costs between sizes, beside 0.1 between timings
TASKS = (1.0, 1.0, 0.5, 0.9)  # of a macro mean: each task's share, as a part of p
NORMAL = stats.norm.ppf((np.arange(20_001) + 0.5) / 20_001)
Ends = tuple[np.ndarray, np.ndarray]  # low and high of every draw


@dataclass(frozen=True)
class Case:
    """What is drawn: ``parts`` of a score (1 is right or wrong), and ``heads`` that share the n questions (0: none).

    Of a slope n counts timings, four at each size, that vary by 0.1; the rest is unused.
    """

    statistic: str
    n: int
    share: float
    parts: int = 1
    heads: int = 0

    @property
    def least(self) -> float:
        """The coverage that is asked for."""
        few = 0 < self.heads < 8 if self.statistic != "slope" else self.n // 4 < 8
        return 0.90 if few else 0.93


@dataclass(frozen=True)
class Found:
    """A case's worst and mean coverage, its median width, and the best of the field; None where none of it covers."""

    case: Case
    coverage: float
    average: float
    width: float
    best: str | None
    ratio: float | None

    @property
    def verdict(self) -> str:
        """``short`` of the coverage that is asked for, or not."""
        if self.coverage < self.case.least:
            return "short"
        return "covers, wide" if self.ratio and self.ratio > WIDE else "covers"


def cases(statistics: Sequence[str] = STATISTICS, sizes: Sequence[int] = SIZES) -> Iterator[Case]:
    """Every case of some statistics and sizes."""
    for statistic, n, share, parts, heads in product(statistics, sizes, SHARES, (1, 4), HEADS):
        fits = n >= 2 * heads and heads != 4 if statistic == "macro mean" else True  # two heads a task at least
        if statistic != "slope" and fits:
            yield Case(statistic, n, share, parts, heads)
    if "slope" in statistics:
        yield from (Case("slope", 4 * count, 1.0) for count in (3, 4, 7, 10))


def simulate(case: Case, draws: int, seed: int = 0) -> Found:
    """Draw a case so many times, at every loss."""
    covered, widths, beside = [], [], []
    losses = (*LOSSES, NONE_SEEN / case.n)
    varied = {"difference": losses, "ratio": losses, "slope": SIZES_APART}
    for number, loss in enumerate(varied.get(case.statistic, LOSSES[:1])):
        truth, own, field = SIMULATED[case.statistic](case, draws, loss, np.random.default_rng([seed, number]))
        covered.append(_coverage(own, truth))
        widths.append(_width(own))
        beside.append({name: (_coverage(ends, truth), _width(ends)) for name, ends in field.items()})
    ratios = {}
    for name in beside[0]:
        if all(found[name][0] >= case.least and found[name][1] > 0 for found in beside):
            ratios[name] = max(width / found[name][1] for width, found in zip(widths, beside, strict=True))
    best = max(ratios, key=ratios.__getitem__, default=None)
    return Found(case, min(covered), float(np.mean(covered)), widths[0], best, ratios.get(best))


def judge(case: Case, draws: int) -> Found:
    """Simulate a case, and once more with many more draws where the first ones fall short."""
    found = simulate(case, draws)
    return found if found.verdict != "short" else simulate(case, AGAIN * draws, seed=1)


def _coverage(ends: Ends, truth: float) -> float:
    return float(np.mean((ends[0] <= truth + 1e-9) & (truth - 1e-9 <= ends[1])))


def _width(ends: Ends) -> float:
    return float(np.median(ends[1] - ends[0]))


def _ends(intervals: Iterator[Interval]) -> Ends:
    low, high = np.array([(found.low, found.high) for found in intervals]).T
    return low, high


def _drawn(case: Case, draws: int, loss: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores [draws, n, first and second] and the true means of both sides."""
    shares = np.array([case.share * (1 - loss), case.share])
    heads = case.heads or case.n
    apart = APART if case.heads else 0.0
    common, own = generator.standard_normal((draws, heads, 1)), generator.standard_normal((draws, heads, 2))
    of_heads = (shares + apart * (common + own) / math.sqrt(2)).clip(0, 1)
    chances = of_heads[:, np.arange(case.n) % heads]
    luck = generator.random((draws, case.n, case.parts, 2))
    same = generator.random((draws, case.n, case.parts)) < 0.5
    luck[..., 0] = np.where(same, luck[..., 1], luck[..., 0])
    scores = (luck < chances[:, :, None, :]).mean(axis=2)
    return scores, (shares[:, None] + apart * NORMAL).clip(0, 1).mean(axis=1)


def _groups(case: Case) -> np.ndarray | None:
    return np.arange(case.n) % case.heads if case.heads else None


Simulated = tuple[float, Ends, dict[str, Ends]]


def _means(case: Case, draws: int, loss: float, generator: np.random.Generator) -> Simulated:
    scores, (_, truth) = _drawn(case, draws, loss, generator)
    column, groups = scores[..., 1], _groups(case)
    field = {"Student": _student(column, groups)}
    if case.parts == 1 and groups is None:
        field["Wilson"] = _wilson(column.mean(axis=1), case.n)
    if case.parts == 1 and groups is not None:
        field["Wilson, effective n"] = _wilson(column.mean(axis=1), _effective(column, groups))
    return truth, _ends(mean_interval(values, groups=groups) for values in column), field


def _differences(case: Case, draws: int, loss: float, generator: np.random.Generator) -> Simulated:
    scores, truths = _drawn(case, draws, loss, generator)
    groups, field = _groups(case), {}
    field["Student"] = _student(scores[..., 0] - scores[..., 1], groups)
    if case.parts == 1 and groups is None:
        field |= {"Tango": _tango(scores), "Newcombe 10": _newcombe(scores)}
    return float(truths[0] - truths[1]), _ends(difference(pairs, groups) for pairs in scores), field


def _ratios(case: Case, draws: int, loss: float, generator: np.random.Generator) -> Simulated:
    scores, truths = _drawn(case, draws, loss, generator)
    groups = _groups(case)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = scores.mean(axis=1)
        relative = scores[..., 0] / means[:, :1] - scores[..., 1] / means[:, 1:]
        low, high = _student(relative, groups)
        quotient = means[:, 0] / means[:, 1]
        field = {"Student, log ratio": (quotient * np.exp(low), quotient * np.exp(high))}
    if case.parts == 1 and groups is None:
        field["Bonett-Price"] = _bonett_price(scores)
    return float(truths[0] / truths[1]), _ends(ratio(pairs, groups) for pairs in scores), field


def _macro_means(case: Case, draws: int, loss: float, generator: np.random.Generator) -> Simulated:
    size = case.n // len(TASKS)
    heads = case.heads // len(TASKS) if case.heads else 0
    parts = [Case("mean", size, case.share * part, case.parts, heads) for part in TASKS]
    drawn = [_drawn(part, draws, 0.0, generator) for part in parts]
    columns = np.stack([scores[..., 1] for scores, _ in drawn], axis=1)
    truth, groups = float(np.mean([truths[1] for _, truths in drawn])), _groups(parts[0])
    own = _ends(macro_interval(list(tasks), [groups] * len(TASKS)) for tasks in columns)
    margins = [_wilson(columns[:, task].mean(axis=1), size) for task in range(len(TASKS))]
    field = {}
    if case.parts == 1 and groups is None:
        field["Wilson, square-and-add"] = _square_and_add(columns.mean(axis=2), margins)
    field["Student, square-and-add"] = _square_and_add(
        columns.mean(axis=2), [_student(columns[:, task], groups) for task in range(len(TASKS))]
    )
    return truth, own, field


def _slopes(case: Case, draws: int, loss: float, generator: np.random.Generator) -> Simulated:
    sizes = np.repeat(16384 * 2.0 ** np.arange(case.n // 4), 4)
    apart = np.repeat(loss * generator.standard_normal((draws, case.n // 4)), 4, axis=1)
    costs = sizes * np.exp(apart + 0.1 * generator.standard_normal((draws, case.n)))
    at = np.log(sizes) - np.log(sizes).mean()

    def line(x: np.ndarray, y: np.ndarray) -> Ends:
        slope = y @ x / (x @ x)
        off = y - y.mean(axis=1, keepdims=True) - slope[:, None] * x
        margin = stats.t.ppf(0.975, len(x) - 2) * np.sqrt((off**2).sum(axis=1) / (len(x) - 2) / (x @ x))
        return slope - margin, slope + margin

    field = {"least squares, timings": line(at, np.log(costs))}
    field["least squares, means of sizes"] = line(at[::4], np.log(costs).reshape(draws, -1, 4).mean(axis=2))
    return 1.0, _ends(slope_interval(sizes, row) for row in costs), field


SIMULATED: dict[str, Callable[[Case, int, float, np.random.Generator], Simulated]] = {
    "mean": _means,
    "difference": _differences,
    "ratio": _ratios,
    "macro mean": _macro_means,
    "slope": _slopes,
}


def _student(values: np.ndarray, groups: np.ndarray | None) -> Ends:
    """Student's interval of the mean of each row, over questions or over the means of heads."""
    if groups is not None:
        values = np.stack([values[:, groups == head].mean(axis=1) for head in np.unique(groups)], axis=1)
    count = values.shape[1]
    margin = stats.t.ppf(0.975, count - 1) * values.std(axis=1, ddof=1) / math.sqrt(count)
    return values.mean(axis=1) - margin, values.mean(axis=1) + margin


def _effective(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many independent questions each row is worth (Korn and Graubard 1998)."""
    by_head = np.stack([values[:, groups == head].mean(axis=1) for head in np.unique(groups)], axis=1)
    count = by_head.shape[1]
    simple = values.var(axis=1, ddof=1) / values.shape[1]
    effect = np.where(simple > 0, by_head.var(axis=1, ddof=1) / count / np.where(simple > 0, simple, 1), 1).clip(1)
    return values.shape[1] / effect * (Z / stats.t.ppf(0.975, count - 1)) ** 2


def _wilson(mean: np.ndarray, n: np.ndarray | float, z: np.ndarray | float = Z) -> Ends:
    """Wilson 1927."""
    centre, margin = mean + z * z / (2 * n), z * np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return (centre - margin) / (1 + z * z / n), (centre + margin) / (1 + z * z / n)


def _square_and_add(means: np.ndarray, ends: list[Ends]) -> Ends:
    """Zou and Donner 2008, for the mean over columns of ``means`` [draws, tasks]."""
    below = sum((means[:, task] - low) ** 2 for task, (low, _) in enumerate(ends))
    above = sum((high - means[:, task]) ** 2 for task, (_, high) in enumerate(ends))
    return means.mean(axis=1) - np.sqrt(below) / len(ends), means.mean(axis=1) + np.sqrt(above) / len(ends)


def _paired_counts(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """How many questions both sides, the first alone and the second alone have right, and how many there are."""
    first, second = scores[..., 0], scores[..., 1]
    return (
        (first * second).sum(axis=1),
        (first * (1 - second)).sum(axis=1),
        ((1 - first) * second).sum(axis=1),
        scores.shape[1],
    )


def _newcombe(scores: np.ndarray) -> Ends:
    """Newcombe 1998, method 10."""
    both, first, second, n = _paired_counts(scores)
    neither = n - both - first - second
    one, other = (both + first) / n, (both + second) / n
    product_of_margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    cross = np.where(cross > n / 2, cross - n / 2, np.minimum(cross, 0))
    phi = np.where(product_of_margins > 0, cross / np.sqrt(np.maximum(product_of_margins, 1)), 0)
    (low1, high1), (low2, high2) = _wilson(one, n), _wilson(other, n)
    down, up = (one - low1, high2 - other), (high1 - one, other - low2)
    margins = [np.sqrt(np.maximum(a * a - 2 * phi * a * b + b * b, 0)) for a, b in (down, up)]
    return one - other - margins[0], one - other + margins[1]


def _tango(scores: np.ndarray) -> Ends:
    """Tango 1998: the score interval, by bisection."""
    _, first, second, n = _paired_counts(scores)
    point = (first - second) / n

    def statistic(delta: np.ndarray) -> np.ndarray:
        b = -first - second + (2 * n - first + second) * delta
        p = (np.sqrt(np.maximum(b * b + 8 * n * second * delta * (1 - delta), 0)) - b) / (4 * n)
        variance = n * (2 * p + delta * (1 - delta))
        return (first - second - n * delta) / np.sqrt(np.maximum(variance, 1e-12))

    ends = []
    for end, sign in ((-1.0, 1), (1.0, -1)):
        outside, inside = np.full_like(point, end), point.copy()
        for _ in range(50):
            middle = (outside + inside) / 2
            rejected = sign * statistic(middle) > Z
            outside, inside = np.where(rejected, middle, outside), np.where(rejected, inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def _bonett_price(scores: np.ndarray) -> Ends:
    """Bonett and Price 2006: Wilson intervals of both shares, at the level that makes their quotient's right."""
    both, first, second, _ = _paired_counts(scores)
    n = both + first + second
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = [np.sqrt((1 - (both + k + 1) / (n + 2)) / (both + k + 1)) for k in (first, second)]
        joint = np.sqrt((first + second + 2) / ((both + first + 1) * (both + second + 1)))
        z = Z * joint / (errors[0] + errors[1])
        (low1, high1), (low2, high2) = (_wilson((both + k) / n, n, z) for k in (first, second))
        return np.nan_to_num(low1 / high2), np.nan_to_num(high1 / low2, nan=np.inf)


def table(found: Sequence[Found]) -> Table:
    """A row a case."""
    columns = [*plain(statistic="Statistic", scores="Scores", heads="Heads", n="n"), Column("p", "p", "g")]
    columns += [Column("coverage", "Coverage", ".3f"), Column("least", "Asked", ".2f"), Column("width", "Width", ".4f")]
    columns += [*plain(best="Best of the field that covers"), Column("ratio", "Times its width", ".2f")]
    columns += plain(verdict="Verdict")
    rows = []
    for it in found:
        case = it.case
        scores = "timings" if case.statistic == "slope" else "0/1" if case.parts == 1 else "quarters"
        measured = it.coverage, case.least, it.width, it.best, it.ratio, it.verdict
        rows.append((case.statistic, scores, case.heads or None, case.n, case.share, *measured))
    return Table("coverage", "Coverage of nominal 95 % intervals", columns, rows)


def main() -> int:
    """Simulate, print, and end with 1 where an interval falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="of each case and loss (default: 1000)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="questions (default: 16 32 128 512)")
    parser.add_argument("--statistics", nargs="+", choices=STATISTICS, default=STATISTICS, help="default: all")
    parser.add_argument("--output", type=given_path, help="a CSV of the table")
    arguments = parser.parse_args()
    chosen = list(cases(arguments.statistics, arguments.sizes))
    with get_context("fork").Pool() as pool:
        judged = pool.imap(partial(judge, draws=arguments.draws), chosen)
        found = list(tqdm(judged, total=len(chosen), file=sys.stderr, unit="case"))
    print("\n".join(table(found).text()))
    if arguments.output:
        table(found).frame.to_csv(arguments.output, index=False, float_format="%.5g")
    failed = [it.case for it in found if it.verdict == "short"]
    wide = sum("wide" in it.verdict for it in found)
    print(f"\n{len(found)} cases, {wide} wider than {WIDE} times the best that covers,")
    print(f"{len(failed)} short of the coverage asked for", *failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    run_command(main)
