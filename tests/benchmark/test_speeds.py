"""Factors, areas, bootstraps and profiles on curves whose answers are known: ties, plateaus, divergence, never."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from benchmark.measures import area_under_curve, bootstrap, paired_difference
from benchmark.profiles import Profile, performance_profiles, profile_area
from benchmark.speeds import factor_interval, final_factor, smoothed

NAN, INF = math.nan, math.inf
STEPS = [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("curve", "reference", "factor"),
    [
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1], 1.0),  # itself
        ([5, 3, 1, 1, 1], [5, 4, 3, 2, 1], 2.0),  # twice as fast, then a plateau
        ([5, 4, 3, 2, 1], [5, 3, 1, 1, 1], 0.5),  # and the other way round
        ([5, 4.5, 4, 3.5, 3], [5, 4, 3, 2, 1], 0.5),  # never there: the reference is at our end after half the way
        ([5, 4, 3, 4, 5], [5, 4.5, 4, 3.5, 3], 2.0),  # what was reached stays reached
        ([3, 3, 3, 3, 3], [3, 3, 3, 3, 3], 1.0),  # a tie at step 0
        ([1, 1, 1, 1, 1], [5, 4, 3, 2, 1], INF),  # there before the first step
        ([5, 5, 5, 5, 5], [5, 4, 3, 2, 1], 0.0),  # never learned a thing
        ([5, NAN, NAN, NAN, NAN], [5, 4, 3, 2, 1], 0.0),  # diverged: judged by the best it had
        ([NAN, NAN, NAN, NAN, NAN], [5, 4, 3, 2, 1], None),
        ([5, 4, 3, 2, 1], [NAN, NAN, NAN, NAN, NAN], None),
    ],
)
def test_final_factor(curve: list[float], reference: list[float], factor: float | None) -> None:
    assert final_factor(curve, reference, STEPS, window=1) == factor


def test_smoothing_keeps_straight_lines_and_never_rises() -> None:
    line = np.linspace(9, 1, 9)
    assert smoothed(line, 5) == pytest.approx(line)
    noisy = smoothed([4, 0, 4, 0, 4, 0, 4], 3)
    assert (np.diff(noisy) <= 0).all()
    assert noisy.min() > 0  # one lucky point is not the level of the curve


def test_a_lucky_point_does_not_count_as_the_final_loss() -> None:
    reference = [5, 4, 3, 2, 1, 1, 1]
    lucky = [5, 5, 0.9, 5, 5, 5, 5]
    factor = final_factor(lucky, reference, range(7), window=3)
    assert factor is not None
    assert factor < 1


def test_area_under_curve() -> None:
    assert area_under_curve([2, 2, 2], [0, 1, 9]) == pytest.approx(2)
    assert area_under_curve([[4, 0], [0, 4]], [0, 10]).tolist() == [2, 2]
    assert area_under_curve([4, 0, 0], [0, 10, 40]) == pytest.approx(0.5)  # points need not be evenly spread
    assert area_under_curve([1, NAN, 1], [0, 1, 2]) == INF


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(size=30)
    ours = bootstrap(30, lambda some: values[some].mean(), draws=4000)
    theirs = scipy_bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_bootstrap_is_the_same_every_time_and_takes_infinities() -> None:
    values = np.array([1.0, 2.0, 3.0, INF])
    first, second = (bootstrap(4, lambda some: float(values[some].max())) for _ in range(2))
    assert first == second
    assert first.high == INF


def test_a_difference_is_significant_only_if_both_tests_say_so() -> None:
    clear = paired_difference([1, 1.1, 0.9, 1], [2, 2, 2.1, 2])
    assert clear is not None
    assert clear.significant
    assert clear.high < 0
    none = paired_difference([1, 2, 3, 4], [1.5, 1.4, 3.6, 3.4])
    assert none is not None
    assert none.low <= 0 <= none.high
    assert not none.significant


def test_the_bootstrap_of_a_factor_is_paired() -> None:
    """Seeds differ ten times more than the contenders do, in step: so the factor is 2 in every draw."""
    shift = np.arange(6)[:, None] * 10.0
    ours, theirs = np.array([5.0, 3, 1, 1, 1]) + shift, np.array([5.0, 4, 3, 2, 1]) + shift
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    assert factor_interval(ours, theirs, STEPS) == (2, 2)


def test_the_interval_of_a_factor_says_never() -> None:
    ours, theirs = np.array([[5, 4, 3, 3, 3]] * 3), np.array([[5, 4, 3, 2, 1]] * 3)
    assert factor_interval(ours, theirs, STEPS) == (0, 0)
    assert factor_interval(ours, theirs * NAN, STEPS) is None


def test_profiles() -> None:
    costs = [[10, 30, INF, 5], [20, 10, INF, 5], [INF, INF, INF, 50]]
    first, second, third = performance_profiles(costs)
    assert first == Profile((1.0, 3.0), (0.5, 0.75))  # a tie counts for both; what nobody solves for nobody
    assert second == Profile((1.0, 2.0), (0.5, 0.75))
    assert third == Profile((1.0, 10.0), (0.0, 0.25))


def test_profiles_where_the_target_is_reached_at_once() -> None:
    first, second = performance_profiles([[0, 0], [0, 10]])
    assert first == Profile((1.0,), (1.0,))
    assert second == Profile((1.0,), (0.5,))


def test_the_area_under_a_profile() -> None:
    assert profile_area(Profile((1.0,), (1.0,)), 4) == pytest.approx(1)
    assert profile_area(Profile((1.0,), (0.0,)), 4) == 0
    assert profile_area(Profile((1.0, 16.0), (0.25, 1.0)), 4) == pytest.approx(0.25)  # beyond the end: nothing
