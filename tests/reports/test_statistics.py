"""Intervals against known cases: closed forms, exact coverage of small samples, and samples without spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy import stats

from reports import statistics
from reports.multiplicity import adjusted_level
from reports.statistics import (
    Interval,
    compare,
    difference,
    gain,
    loss,
    macro_interval,
    mcnemar,
    mean_interval,
    quadratic_kappa,
    rank_correlation,
    ratio,
    slope_interval,
)

CORNERS = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]


def repeated(*counts: int) -> np.ndarray:
    """Pairs: so many questions right on both sides, on the first alone, on the second alone, on neither."""
    return np.repeat(CORNERS, counts, axis=0)


@pytest.mark.parametrize("n", [5, 16, 32, 100])
def test_exact_coverage_of_a_share(n: int) -> None:
    found = [mean_interval([1.0] * right + [0.0] * (n - right)) for right in range(n + 1)]
    low, high = np.array([(it.low, it.high) for it in found]).T
    for chance in np.linspace(0.002, 0.998, 250):
        likely = stats.binom.pmf(np.arange(n + 1), n, chance)
        assert likely @ ((low <= chance) & (chance <= high)) >= (0.94 if n > 5 else 0.93)


def test_exact_coverage_of_paired_shares() -> None:
    """Every outcome of 12 questions: ratio and difference at 80 pairs of shares, constant sides among them."""
    n = 12
    outcomes = [(a, b, c, n - a - b - c) for a, b, c in product(range(n + 1), repeat=3) if a + b + c <= n]
    counts = np.array(outcomes)
    tables = [repeated(*outcome) for outcome in outcomes]
    found = {statistic: [statistic(table) for table in tables] for statistic in (difference, ratio)}
    ends = {statistic: np.array([(it.low, it.high) for it in those]).T for statistic, those in found.items()}
    for second, share, apart in product((0.5, 0.8, 0.9, 0.99, 1.0), (1.0, 0.99, 0.9, 0.7), (0.0, 0.3, 0.6, 1.0)):
        first = second * share
        both = first * second * apart + min(first, second) * (1 - apart)  # independent to nested
        chances = np.array([both, first - both, second - both, 1 - first - second + both]).clip(0)
        likely = stats.multinomial.pmf(counts, n, chances / chances.sum())
        for statistic, truth in ((difference, first - second), (ratio, share)):
            low, high = ends[statistic]
            assert likely @ ((low <= truth + 1e-9) & (truth - 1e-9 <= high)) >= 0.93


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 96, 4096])
def test_a_mean_without_spread_is_not_certain(value: float, n: int) -> None:
    found = mean_interval([value] * n)
    assert found.low <= found.value == value <= found.high
    assert 3 / n < max(value - found.low, found.high - value) * max(1, n / 3) or found.high - found.low > 3 / (n + 4)


@pytest.mark.parametrize("n", [2, 16, 128, 2048])
def test_nothing_disagrees_and_nothing_is_certain(n: int) -> None:
    pairs = repeated(n, 0, 0, 0)
    for found in (difference(pairs), loss(pairs), gain(pairs), ratio(pairs)):
        assert found.high - found.low > 3 / n
    assert difference(pairs).low == -difference(pairs).high  # neither side is favoured
    assert loss(pairs).high < 1 and loss(pairs).low < 0


def test_two_questions_say_nothing() -> None:
    lost = loss(repeated(1, 0, 0, 1))
    assert lost.low < -5 and lost.high > 0.9


def test_three_of_five_wins_prove_nothing() -> None:
    pairs = repeated(1, 3, 0, 1)
    assert difference(pairs).low < 0 < difference(pairs).value
    assert mcnemar(pairs) == pytest.approx(0.25)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (6, 0), (9, 2), (3, 3)])
def test_mcnemar_is_the_sign_test(wins: int, losses: int) -> None:
    extreme = min(wins, losses)
    tail = sum(math.comb(wins + losses, k) for k in range(extreme + 1)) / 2 ** (wins + losses)
    assert mcnemar(repeated(4, wins, losses, 1)) == pytest.approx(min(1, 2 * tail))
    assert mcnemar(np.array([[0.5, 1.0]])) is None


def test_many_questions_give_the_normal_interval() -> None:
    values = np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, 1.0], size=4000)
    found, margin = mean_interval(values), 1.96 * values.std() / math.sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), abs=3e-4)


def test_what_varies_little_is_known_well_and_a_rare_failure_is_not_forgotten() -> None:
    generator = np.random.default_rng(1)
    steady = mean_interval(0.7 + 0.05 * generator.random(64))
    assert steady.high - steady.low < 0.012
    rare = mean_interval([1.0] * 60 + [0.75] * 2)
    assert rare.low < 1 - 3 / 62  # of 62 questions the one in twenty that is wholly wrong may be missing


def test_points_of_a_judge_keep_their_scale() -> None:
    found = mean_interval([5.0, 4.0, 3.5, 5.0, 0.0], scale=5.0)
    assert found.value == pytest.approx(3.5)
    assert 0 < found.low < 3.5 < found.high <= 5


@pytest.mark.parametrize("values", [[], [0.2, 1.2], [-0.1], [math.nan, 0.5]])
def test_values_outside_the_scale_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected values"):
        mean_interval(values)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    first = (np.random.default_rng(6).random(300) < 0.6).astype(float)
    second = first.copy()
    second[:15] = 0
    paired, alone = difference(np.column_stack([first, second])), mean_interval(first)
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_constant_side_is_not_known() -> None:
    first = np.array([1.0] * 27 + [0.0] * 3)
    alone, beside_ones = mean_interval(first), difference(np.column_stack([first, np.ones(30)]))
    assert beside_ones.low == pytest.approx(alone.low - 1, abs=1e-6)
    assert beside_ones.high - beside_ones.low >= alone.high - alone.low


def test_ratio_over_nothing_is_infinite_with_a_finite_lower_end() -> None:
    found = ratio(repeated(0, 80, 0, 20))
    assert found.value == math.inf == found.high
    assert 10 < found.low < math.inf
    nothing = ratio(np.zeros((10, 2)))
    assert math.isnan(nothing.value) and (nothing.low, nothing.high) == (0, math.inf)
    assert ratio(repeated(0, 0, 80, 20)).low == 0


def test_gain_and_loss_are_the_ratio_in_other_words() -> None:
    generator = np.random.default_rng(7)
    pairs = np.column_stack([generator.random(60), generator.random(60)])
    quotient, more, less = ratio(pairs), gain(pairs), loss(pairs)
    assert (more.value, more.low, more.high) == pytest.approx((quotient.value - 1, quotient.low - 1, quotient.high - 1))
    assert (less.value, less.low, less.high) == pytest.approx((1 - quotient.value, 1 - quotient.high, 1 - quotient.low))
    turned = ratio(pairs[:, ::-1])
    assert (turned.low, turned.high) == pytest.approx((1 / quotient.high, 1 / quotient.low), rel=1e-6)
    assert compare("loss", pairs).high == pytest.approx(100 * less.high)


def test_strata_count_equally_whatever_their_size() -> None:
    generator = np.random.default_rng(8)
    many, few = (
        np.column_stack([generator.random(500), generator.random(500)]),
        np.array([[1.0, 0.2], [0.8, 0.1], [0.9, 0.3]]),
    )
    found = difference([many, few])
    expected = np.mean([(many[:, 0] - many[:, 1]).mean(), (few[:, 0] - few[:, 1]).mean()])
    assert found.value == pytest.approx(expected)
    assert found.n == 503


def test_tasks_of_unequal_difficulty_do_not_widen_their_mean() -> None:
    tasks = [[1.0] * 30 + [0.0] * 2, [1.0] * 2 + [0.0] * 30]
    unequal, pooled = macro_interval(tasks), mean_interval(np.concatenate(tasks))
    assert unequal.high - unequal.low < 0.7 * (pooled.high - pooled.low)
    ceiling = macro_interval([[1.0] * 32] * 8)
    assert 0.985 < ceiling.low < 1 - 3 / 256


def test_heads_widen_the_interval_when_their_questions_agree() -> None:
    groups = np.repeat(np.arange(12), 20)
    agreeing = np.repeat(np.tile([1.0, 0.0, 1.0], 4), 20)
    pairs = np.column_stack([agreeing, np.ones(240)])
    for statistic in (loss, difference, ratio, gain):
        alone, clustered = statistic(pairs), statistic(pairs, groups)
        assert clustered.value == pytest.approx(alone.value)
        assert clustered.high - clustered.low > 2.5 * (alone.high - alone.low)
    assert clustered.units == 12 and "12 heads" in clustered.method
    assert mean_interval(agreeing, groups=groups).low < mean_interval(agreeing).low - 0.1
    assert macro_interval([agreeing, agreeing], [groups, None]).units == 252


def test_few_heads_are_wide_and_one_head_is_not_many_questions() -> None:
    right = [1.0] * 60 + [0.0] * 4
    widths = [it.high - it.low for it in (mean_interval(right, groups=np.arange(64) * k // 64) for k in (2, 4, 8, 64))]
    assert widths == sorted(widths, reverse=True)
    one, alone = mean_interval(right, groups=["head0"] * 64), mean_interval(right)
    assert one.units == 1 and one.high - one.low > 1.5 * (alone.high - alone.low)


def test_slope_of_a_power_law() -> None:
    sizes = np.array([16384, 65536, 262144, 1_000_000])
    found = slope_interval(sizes, 3e-6 * sizes**0.8 * np.array([1.02, 0.97, 1.01, 1.0]))
    assert found.low < 0.8 < found.high
    assert found.value == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("digit", [-1e-12, 0.0, 1e-12])
def test_a_last_digit_decides_nothing(digit: float) -> None:
    sizes = np.array([16384, 65536, 262144, 1_000_000])
    found = slope_interval(sizes, sizes ** (1 + digit))
    assert found.low < 0.99 and 1.0 < found.high < 1.05
    constant = slope_interval(sizes, np.full(4, 0.3))
    assert constant.value == pytest.approx(0) and -0.05 < constant.low < 0 < constant.high < 0.05


def test_repeated_timings_that_lie_apart_widen_a_slope() -> None:
    sizes, noise = np.array([1e4, 1e5, 1e6]), np.exp([-0.4, 0.4])
    found = slope_interval(np.repeat(sizes, 2), np.outer(sizes, noise).ravel())
    assert found.value == pytest.approx(1) and found.high - found.low > 0.2
    assert (found.n, found.units) == (6, 3)


@pytest.mark.parametrize("costs", [[1.0, 2.0], [1.0, 0.0, 2.0], [1.0, math.nan, 2.0], [1.0, math.inf, 2.0]])
def test_a_slope_needs_three_positive_points(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="three points"):
        slope_interval(range(1, len(costs) + 1), costs)
    with pytest.raises(ValueError, match="three points"):
        slope_interval([1, 1, 2, 2], [1, 2, 3, 4])  # two sizes


def test_a_comparison_needs_questions() -> None:
    with pytest.raises(ValueError, match="both sides"):
        difference([np.empty((0, 2))])


def test_agreement_of_judges() -> None:
    x = np.array([0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0] * 4, dtype=float)
    same = np.column_stack([x, x])
    for statistic in (quadratic_kappa, rank_correlation):
        found = statistic(same)
        assert found.value == pytest.approx(1) and found.low < 0.95 and found.high == pytest.approx(1)
        opposite = statistic(np.column_stack([x, 5 - x]))
        assert opposite.value == pytest.approx(-1) and opposite.high > -0.95
        assert math.isnan(statistic(np.ones((9, 2))).value)
    noisy = np.column_stack([x, np.random.default_rng(2).permutation(x)])
    assert rank_correlation(noisy).value == pytest.approx(stats.spearmanr(*noisy.T).statistic)
    assert rank_correlation(noisy).low < 0 < rank_correlation(noisy).high


def test_an_interval_in_another_unit() -> None:
    found = Interval(0.5, 0.4, 0.7, 10, "").scaled(-100, 100)
    assert (found.value, found.low, found.high) == pytest.approx((50, 30, 60))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("pairs", [[[1, NAN]], [[5, 0], [3, 1]], [[-0.1, 1]], [[INF, 1]], [[1, 0], [0, 1 + 1e-6]]])
@pytest.mark.parametrize("statistic", [difference, ratio, gain, loss, mcnemar])
def test_what_is_no_score_has_no_interval(statistic: Callable, pairs: list) -> None:
    with pytest.raises(ValueError, match="scores from 0 to 1"):
        statistic(np.array(pairs, dtype=float))


@pytest.mark.parametrize("agreement", [rank_correlation, quadratic_kappa])
@pytest.mark.parametrize("pairs", [np.zeros((0, 2)), np.array([[1, NAN], [2, 3]]), np.array([[1, INF], [2, 3]])])
def test_an_agreement_on_what_is_no_number_is_refused(agreement: Callable, pairs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="all finite"):
        agreement(pairs)


@pytest.mark.parametrize("costs", [[1, -2, 4], [1, 0, 4], [1, NAN, 4], [1, INF, 4], [1, 2], [1, 2, 3, 4]])
def test_a_cost_that_is_none_has_no_slope(costs: list) -> None:
    with pytest.raises(ValueError, match="all positive"):
        slope_interval([1, 2, 4], costs)


@pytest.mark.parametrize(
    ("pairs", "value", "low", "high"),
    [
        ([[0, 0]] * 5, NAN, 0, INF), ([[1, 0]] * 5, INF, 1.1041, INF), ([[0, 1]] * 5, 0, 0, 0.9057),
        ([[1, 1]] * 3, 1, 0.3511, 2.8480), ([[1, 0]], INF, 0.0316, INF),
    ],
)  # fmt: skip
def test_ratios_with_a_side_of_zeros_are_wide(pairs: list, value: float, low: float, high: float) -> None:
    found = ratio(np.array(pairs, dtype=float))
    assert [found.value, found.low, found.high] == pytest.approx([value, low, high], abs=1e-3, nan_ok=True)
    assert found.high - found.low > 0.9


def test_scores_that_are_all_the_same_have_the_interval_of_their_mirror_at_every_n() -> None:
    """Whatever the rounding of a sum is here: the largest share that is not rejected falls as n grows."""
    highs = [mean_interval([0.0] * n).high for n in range(1, 200)]
    assert highs == pytest.approx([1 - mean_interval([1.0] * n).low for n in range(1, 200)], abs=1e-6)
    assert np.all(np.diff(highs) < 0)
    assert highs[99] == pytest.approx(0.0331, abs=1e-4)


def test_a_family_stands_on_the_level_of_its_chosen() -> None:
    """Thresholds as of p-values: a claim of p decides at levels up to 1 - p (Benjamini and Hochberg's step-up)."""

    def level(*p: float) -> float:
        return adjusted_level([lambda at, own=own: at <= 1 - own for own in p])

    assert level() == level(0.04) == pytest.approx(0.95)
    assert level(0.04, 0.9) == pytest.approx(1 - 0.05 / 2)  # none of two: the level that one would have to reach
    assert level(0.01, 0.04, 0.9, 0.9) == pytest.approx(1 - 0.05 / 4)
    assert level(0.01, 0.024, 0.9, 0.9) == pytest.approx(1 - 0.05 * 2 / 4)
    assert level(0.049, 0.049, 0.049) == pytest.approx(0.95)


def test_a_higher_level_is_a_wider_interval() -> None:
    pairs = np.random.default_rng(0).integers(0, 2, (40, 2)).astype(float)
    for name in ("difference", "ratio", "gain", "loss"):
        narrow, wide = compare(name, pairs), compare(name, pairs, level=0.99)
        assert wide.low < narrow.low <= narrow.value <= narrow.high < wide.high
    sizes, costs = [1, 2, 4, 8], [1.0, 2.1, 3.9, 8.2]
    assert slope_interval(sizes, costs, level=0.99).low < slope_interval(sizes, costs).low


def test_adjusted_intervals_keep_the_share_of_wrong_ones_low() -> None:
    """Ten differences of which five are 0, chosen where they exclude 0: the false coverage rate is 5 % at most."""
    generator, wrong = np.random.default_rng(1), []
    effects = [0.0] * 5 + [0.3] * 5
    for _ in range(60):
        found = []
        for effect in effects:
            first = generator.random(50) < 0.5 + effect
            second = generator.random(50) < 0.5
            found.append(np.column_stack([first, second]).astype(float))

        def excludes(level: float, pairs: np.ndarray) -> bool:
            it = difference(pairs, level=level)
            return it.low > 0 or it.high < 0

        at = adjusted_level([lambda level, pairs=pairs: excludes(level, pairs) for pairs in found])
        chosen = [(pairs, effect) for pairs, effect in zip(found, effects, strict=True) if excludes(at, pairs)]
        missed = [
            not difference(pairs, level=at).low <= effect <= difference(pairs, level=at).high
            for pairs, effect in chosen
        ]
        wrong.append(sum(missed) / max(len(chosen), 1))
    assert np.mean(wrong) <= 0.05


@pytest.mark.parametrize("n", range(2, 400, 7))
def test_equal_scores_keep_the_room_of_what_was_not_drawn(n: int) -> None:
    """The limit is where the likelihood ratio says: n log((1 - p) / (1 - h)) + log(p / h) / 2, h = 1 / (2 n + 1)."""
    high, half = mean_interval([0.0] * n).high, 1 / (2 * n + 1)
    ratio_at = n * math.log((1 - high) / (1 - half)) + 0.5 * math.log(high / half)
    assert -2 * ratio_at == pytest.approx(stats.norm.ppf(0.975) ** 2, rel=1e-4)


def test_heads_that_agree_still_count_as_a_little_alike():
    """Eight heads of eight with the same scores: nothing varies between them, yet what one head asks is alike."""
    found = statistics._spread(np.tile(np.array([1.0] * 6 + [0.0] * 2), 8), np.repeat(np.arange(8), 8))
    assert found.by_heads == pytest.approx(0)
    assert found.least_effect == pytest.approx(1 + 7 * statistics.LEAST_WITHIN_HEAD)


def test_differences_of_one_sign_alone_may_have_the_other() -> None:
    """Five wins of five, of a quarter each: the sign test's p is 0.06."""
    pairs = np.ones((128, 2))
    pairs[np.arange(5) * 5, 1] = 0.75
    heads = np.arange(128) % 8
    assert difference(pairs, heads).low < 0 < difference(pairs, heads).value
    assert ratio(pairs, heads).low < 1 and difference(pairs[:, ::-1], heads).high > 0
