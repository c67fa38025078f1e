"""How a learning rate changes over a run: factors on it, from the step and the length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Schedule: TypeAlias = Callable[[int, int], float]  # (step, total) -> factor on the learning rate

WARM_UP = 0.1  # share of a run


def constant(step: int, total: int) -> float:
    """The learning rate stays as it is."""
    return 1.0


def cosine(step: int, total: int) -> float:
    """From 1 at step 0 down to 0 at step `total`: (1 + cos(pi step / total)) / 2.

    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return (1 + math.cos(math.pi * step / total)) / 2


def cosine_with_warm_up(step: int, total: int) -> float:
    """In even steps up to 1 over the first tenth of the run, then down to 0 along a cosine.

    >>> [round(cosine_with_warm_up(step, 40), 3) for step in (0, 1, 3, 4, 22, 40)]
    [0.25, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = math.ceil(WARM_UP * total)
    return (step + 1) / rise if step < rise else cosine(step - rise, total - rise)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_with_warm_up": cosine_with_warm_up,
}
