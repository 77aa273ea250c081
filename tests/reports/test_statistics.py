"""Intervals against known cases: closed forms, coverage on simulated questions, and samples without spread."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reports.statistics import (
    difference,
    gain,
    loss,
    macro_interval,
    mean_interval,
    ratio,
    slope_interval,
    wilson,
)


def test_wilson_is_scipys() -> None:
    for right, n in ((0, 5), (3, 7), (94, 96), (96, 96)):
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match="n=0"):
        wilson(0.5, 0)
    with pytest.raises(ValueError, match=r"1\.5"):
        wilson(1.5, 10)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_a_mean_without_spread_is_not_certain(value: float) -> None:
    found = mean_interval([value] * 96)
    assert found.method == "Wilson"
    assert found.low <= found.value == value <= found.high
    assert found.high - found.low > 0.03


def test_bootstrap_of_a_mean_is_the_normal_interval_for_many_questions() -> None:
    values = np.random.default_rng(0).choice([0, 0.25, 0.5, 0.75, 1.0], size=2000)
    found = mean_interval(values)
    margin = 1.96 * values.std() / math.sqrt(len(values))
    assert found.method == "bootstrap"
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), abs=1.5e-3)


def test_resampling_distinct_values_is_resampling_questions() -> None:
    values = np.repeat([0.0, 0.25, 1.0], [3, 9, 28])
    generator = np.random.default_rng(1)
    means = generator.choice(values, size=(20_000, len(values))).mean(axis=1)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.008)


def test_the_same_data_give_the_same_interval() -> None:
    values = np.random.default_rng(2).random(50)
    assert mean_interval(values) == mean_interval(list(values))


def test_points_of_a_judge_keep_their_scale() -> None:
    found = mean_interval([5.0, 4.0, 3.5, 5.0, 0.0], scale=5.0)
    assert found.value == pytest.approx(3.5)
    assert 0 < found.low < 3.5 < found.high <= 5


@pytest.mark.parametrize("values", [[], [0.2, 1.2], [-0.1]])
def test_values_outside_the_scale_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected values"):
        mean_interval(values)


@pytest.mark.parametrize(("chance", "n"), [(0.5, 40), (0.9, 96), (0.98, 96)])
def test_coverage_of_a_share(chance: float, n: int) -> None:
    generator = np.random.default_rng(3)
    found = [mean_interval((generator.random(n) < chance).astype(float)) for _ in range(400)]
    assert np.mean([interval.low <= chance <= interval.high for interval in found]) >= 0.92


def test_coverage_of_a_paired_loss() -> None:
    # after is right only where before was and another draw succeeds: a true loss of 10 %
    generator, hits = np.random.default_rng(4), 0
    for _ in range(200):
        before = generator.random(128) < 0.8
        after = before & (generator.random(128) < 0.9)
        found = loss(np.column_stack([after, before]).astype(float))
        hits += found.low <= 0.1 <= found.high
    assert hits / 200 >= 0.91


def test_coverage_of_a_macro_mean_with_tasks_at_the_ceiling() -> None:
    # the bootstrap alone would take the tasks without a wrong answer as certain
    generator, chances, hits = np.random.default_rng(5), (0.995, 0.995, 0.99, 0.7), 0
    for _ in range(200):
        found = macro_interval([(generator.random(60) < chance).astype(float) for chance in chances])
        hits += found.low <= np.mean(chances) <= found.high
    assert hits / 200 >= 0.92


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    first = (np.random.default_rng(6).random(300) < 0.6).astype(float)
    second = first.copy()
    second[:15] = 0
    paired = difference(np.column_stack([first, second]))
    alone = mean_interval(first)
    assert paired.method == "paired bootstrap"
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_side_without_spread_is_combined_and_not_taken_as_certain() -> None:
    ones = np.ones((96, 2))
    found = difference(ones)
    assert found.method == "two intervals combined"
    assert found.low < -0.03 and found.value == 0 and found.high > 0.03
    lost = loss(ones)
    assert lost.low < 0 == lost.value < lost.high


def test_ratio_over_nothing_is_infinite_with_a_finite_lower_end() -> None:
    pairs = np.column_stack([np.repeat([1.0, 0.0], [80, 20]), np.zeros(100)])
    found = ratio(pairs)
    assert found.value == math.inf == found.high
    assert 10 < found.low < math.inf
    assert math.isnan(ratio(np.zeros((10, 2))).value)


def test_gain_and_loss_are_the_ratio_in_other_words() -> None:
    generator = np.random.default_rng(7)
    pairs = np.column_stack([generator.random(60), generator.random(60)])
    quotient, more, less = ratio(pairs), gain(pairs), loss(pairs)
    assert (more.value, more.low, more.high) == pytest.approx((quotient.value - 1, quotient.low - 1, quotient.high - 1))
    assert (less.value, less.low, less.high) == pytest.approx((1 - quotient.value, 1 - quotient.high, 1 - quotient.low))


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


def test_groups_widen_the_interval_when_their_questions_agree() -> None:
    generator = np.random.default_rng(9)
    groups = np.repeat(np.arange(12), 20)
    values = np.clip(np.repeat(generator.random(12), 20) + generator.normal(0, 0.02, 240), 0, 1)
    alone, clustered = mean_interval(values), mean_interval(values, groups)
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)
    pairs = np.column_stack([values, np.full(240, 0.5) + generator.normal(0, 0.01, 240)])
    assert difference(pairs, groups).high > difference(pairs).high


def test_slope_of_a_power_law() -> None:
    sizes = np.array([16384, 65536, 262144, 1_000_000])
    noise = np.array([1.02, 0.97, 1.01, 1.0])
    found = slope_interval(sizes, 3e-6 * sizes**0.8 * noise)
    assert found.low < 0.8 < found.high
    assert found.value == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("costs", [[1.0, 2.0], [1.0, 0.0, 2.0]])
def test_a_slope_needs_three_positive_points(costs: list[float]) -> None:
    with pytest.raises(ValueError, match="three points"):
        slope_interval(range(1, len(costs) + 1), costs)


def test_a_comparison_needs_questions() -> None:
    with pytest.raises(ValueError, match="both sides"):
        difference([np.empty((0, 2))])
