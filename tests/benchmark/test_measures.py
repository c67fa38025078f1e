"""Measures on curves whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.measures import (
    best_loss,
    diverged,
    final_loss,
    mean_curve,
    paired_difference,
    spread,
    steps_to_reach,
)
from benchmark.speeds import speed

NAN, INF = math.nan, math.inf
losses = st.lists(st.floats(0, 100, width=32), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 2, False),
        (1, 2.1, True),
        (-1, -1.5, False),  # a likelihood that became likelier
        (-1, -10, False),
        (-1, 0, False),
        (-1, 0.1, True),
        (0, -1, False),
        (-1, NAN, True),
        (NAN, -1, False),
    ],
)
def test_negative_losses_diverge_as_positive_ones_do(first: float, last: float, expected: bool) -> None:
    assert diverged([first, 5, last]).tolist() is expected


@pytest.mark.parametrize(
    ("curve", "target", "steps"),
    [
        ([3, 2, 1], 1, 20),  # on an evaluation point
        ([3, 2, 1], 2.5, 5),  # between two
        ([3, 2, 2, 2, 1], 2, 10),  # the beginning of a plateau
        ([3, 1, 2, 0], 1.5, 7.5),  # the first time, though it is lost again
        ([1, 2, 3], 1, 0),  # at step 0
        ([1, 2, 3], 5, 0),  # below it all along
        ([3, 2, 1], 0.5, None),  # never
        ([3, NAN, 1], 1.5, 20),  # nothing to interpolate from
        ([3, 2, NAN], 1, None),  # diverged before
        ([NAN, NAN, NAN], 1, None),
        ([3, 2, 1], INF, None),
        ([3, 2, 1], NAN, None),
    ],
)
def test_steps_to_reach(curve: list[float], target: float, steps: float | None) -> None:
    assert steps_to_reach(curve, 10 * np.arange(len(curve)), target) == steps


@given(losses, st.floats(0, 100, width=32))
def test_steps_to_reach_is_monotone_in_the_target(curve: list[float], target: float) -> None:
    steps = np.arange(len(curve))
    hard, easy = steps_to_reach(curve, steps, target), steps_to_reach(curve, steps, target + 1)
    if hard is not None:
        assert easy is not None
        assert 0 <= easy <= hard <= steps[-1]


@given(losses)
def test_a_curve_is_as_fast_as_itself(curve: list[float]) -> None:
    ours = speed(curve, curve, np.arange(len(curve)))
    assert ours is not None
    assert ours.factor == 1
    assert ours.reference_steps == int(np.argmin(curve))


@pytest.mark.parametrize(
    ("curve", "factor"),
    [
        ([4, 1, 1], 2.0),  # twice as fast
        ([4, 2, 1], 1.0),  # a tie
        ([4, 3, 2], None),  # never
        ([1, 4, 4], INF),  # before the first step
        ([4, NAN, NAN], None),
    ],
)
def test_speed_against_a_reference(curve: list[float], factor: float | None) -> None:
    ours = speed(curve, [4, 2, 1], [0, 10, 20])
    assert ours is not None
    assert (ours.target, ours.reference_steps, ours.factor) == (1, 20, factor)


def test_speed_counts_to_the_first_of_several_equal_bests() -> None:
    ours = speed([4, 4, 4, 1], [4, 1, 1, 1], [0, 10, 20, 30])
    assert ours is not None
    assert (ours.reference_steps, ours.steps) == (10, 30)


def test_speed_without_a_finite_reference() -> None:
    assert speed([1, 1], [NAN, INF], [0, 10]) is None


def test_a_loss_that_is_not_finite_counts_as_infinite() -> None:
    curves = [[2, NAN, 1], [2, 1, -INF]]
    assert final_loss(curves).tolist() == [1, INF]
    assert best_loss(curves).tolist() == [1, 1]
    assert mean_curve(curves).tolist() == [2, INF, INF]


def test_diverged() -> None:
    curves = [[1, 9, 1], [1, 1, 2], [1, 1, 2.1], [1, 1, NAN], [NAN, 1, 1], [1, 1, INF]]
    assert diverged(curves, factor=2).tolist() == [False, False, True, True, False, True]


def test_spread() -> None:
    assert spread([1, 1, 1]) == (1, 0)
    mean, error = spread([1, 3, 5, 7])
    assert mean == 4
    assert error == pytest.approx(np.std([1, 3, 5, 7], ddof=1) / 2)
    mean, error = spread([1, NAN])
    assert mean == INF
    assert math.isnan(error)


def test_paired_difference() -> None:
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert same == (0, 0, 0, 0)
    assert same is not None
    assert not same.significant
    always = paired_difference([1, 5, 9], [2, 6, 10])  # far apart between seeds, the same within each
    assert always == (-1, 0, -1, -1)
    assert always is not None
    assert always.significant
    noisy = paired_difference([1, 2, 3], [2, 1, 3])
    assert noisy is not None
    assert not noisy.significant
    assert paired_difference([1, NAN], [1, 1]) is None
