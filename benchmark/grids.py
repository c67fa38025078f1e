"""Grids of hyper-parameters: for each name the values to try, their combinations, and what lies beyond their edges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lopt.errors import InvalidInput

Grid: TypeAlias = dict[str, tuple[Any, ...]]  # "lr" is always among the names
Setting: TypeAlias = tuple[tuple[str, Any], ...]  # one combination, in the order of the grid's names

# Hyper-parameters that are scales: their grids are widened. Any other is a choice among the values that are listed.
SCALES = ("lr", "weight_decay", "eps")
ABOVE_ZERO = 3.0  # the ratio where the value next to the edge is 0
LEAST_RATIO = 1.5  # at which a grid is widened; a fine linear grid would crawl otherwise


def as_grid(label: str, grid: Mapping[str, Any] | Sequence[float]) -> Grid:
    """`grid` with a tuple of values for each name; a bare sequence holds learning rates.

    Raises:
        InvalidInput: no learning rate; an axis that is empty, or of a scale that is not positive and rising. Only a
            lowest weight decay may be 0.
    """
    named = grid if isinstance(grid, Mapping) else {"lr": grid}
    whole = {str(name): _values(values) for name, values in named.items()}
    if "lr" not in whole:
        raise InvalidInput(f"grid of {label!r}: it has no lr. Give one, or several to have it tuned.")
    for name, values in whole.items():
        _check(f"{name} of {label!r}", values, name)
    return whole


def _values(values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        return (values,)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _check(what: str, values: tuple[Any, ...], name: str) -> None:
    remedy = "Give one positive number, or several in rising order to have it tuned."
    if not values:
        raise InvalidInput(f"{what}: the grid is empty. {remedy}")
    if name not in SCALES:
        return
    for index, value in enumerate(values):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        nothing = name == "weight_decay" and index == 0 and value == 0
        if not nothing and not (number and math.isfinite(value) and value > 0):
            raise InvalidInput(f"{what}: {value!r} is not a positive, finite number. {remedy}")
    if any(low >= high for low, high in itertools.pairwise(values)):
        raise InvalidInput(f"{what}: {list(values)} does not rise. {remedy}")


def settings_of(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """All combinations, the last name's values first.

    >>> settings_of({"lr": (0.1, 1.0), "nesterov": (True,)})
    [(('lr', 0.1), ('nesterov', True)), (('lr', 1.0), ('nesterov', True))]
    """
    return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def edges(grid: Grid, setting: Setting) -> dict[str, bool]:
    """The scales on whose edge a setting lies, and whether that is the upper one. Nothing lies below 0.

    >>> edges({"lr": (0.1, 1.0, 10.0), "weight_decay": (0, 0.1, 1.0)}, (("lr", 10.0), ("weight_decay", 0)))
    {'lr': True}
    """
    at = {}
    for name, value in setting:
        values = grid[name]
        if name in SCALES and len(values) > 1 and value in (values[0], values[-1]) and value != 0:
            at[name] = value == values[-1]
    return at


def widened(values: Sequence[float], upward: bool, count: int) -> list[float]:
    """New values beyond one edge, at the ratio that the axis has there (at least `LEAST_RATIO`), in rising order.

    >>> widened([0.01, 0.1, 1.0], upward=False, count=2)
    [0.0001, 0.001]
    """
    edge, inner = (values[-1], values[-2]) if upward else (values[0], values[1])
    low, high = sorted((edge, inner))
    ratio = max(high / low if low else ABOVE_ZERO, LEAST_RATIO)
    factor = ratio if upward else 1 / ratio
    # Six digits: 0.1 / 10 should be called 0.01.
    return sorted(float(f"{edge * factor**k:.6g}") for k in range(1, count + 1))
