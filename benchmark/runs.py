"""The runs of one contender at some settings and seeds, and their losses at the evaluation points.

A population serves wherever the optimizer allows (`population.py`), else the runs are made one by one (`alone.py`).

Legend of shapes: L settings, S seeds, E evaluation points, P = L * S particles (setting-major).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.alone import Alone
from benchmark.contenders import Contender
from benchmark.elementwise import elementwise
from benchmark.grids import Setting
from benchmark.measures import Array
from benchmark.population import ElementwisePopulation, Population, RulePopulation
from benchmark.schedules import SCHEDULES
from lopt.rules.rule import UpdateRule
from meta_train.unroll import draw
from tasks.task import Split, Task


class Curves(NamedTuple):
    """Losses of runs at the evaluation points; (S, E) each."""

    train: Array  # mean over the training batches since the last point; at step 0 that of the first batch
    validation: Array
    test: Array


def evaluation_points(steps: int, every: int) -> list[int]:
    """Steps at which the loss is measured: 0, every `every`, and the last.

    >>> evaluation_points(25, 10)
    [0, 10, 20, 25]
    """
    return [*range(0, steps, every), steps]


def runs(
    contender: Contender,
    task: Task,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    points: Sequence[int],
    splits: Sequence[Split],
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, Array]:
    """Trains a contender at every setting with every seed, and measures at `points`: the first is 0, the last the end.

    Initial weights and batches follow from the seed alone: they are the same for every setting and every contender.
    Batches are drawn from one evaluation point to the next, so that memory does not grow with the length of the run.

    Args:
        splits: on which the loss is measured. What is not named here is not looked at.
        advance: is told how many steps have just been made.

    Returns:
        Losses (L, S, E) for "train" (the mean since the last point) and for every one of `splits`.
    """
    if is_population(contender):
        return _run(contender, task, settings, seeds, points, splits, advance)
    cells = [
        [_run(contender, task, [setting], [seed], points, splits, lambda steps: None) for seed in seeds]
        for setting in settings
    ]
    advance(points[-1])
    return {
        name: np.concatenate([np.concatenate([run[name] for run in row], 1) for row in cells]) for name in cells[0][0]
    }


def is_population(contender: Contender) -> bool:
    """Whether its runs are made side by side."""
    if isinstance(contender.optimizer, UpdateRule):
        return True
    return elementwise(contender.optimizer, contender.arguments, list(contender.axes)) is not None


def _run(
    contender: Contender,
    task: Task,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    points: Sequence[int],
    splits: Sequence[Split],
    advance: Callable[[int], None],
) -> dict[str, Array]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    initial = [task.init(generator) for generator in generators]
    schedule = SCHEDULES[contender.schedule]
    measured: list[Tensor] = []
    with torch.no_grad():
        population = _start(contender, task, initial, settings, points[-1])
        count = len(settings) * len(seeds)
        at_start = _measure(task, population, count, splits)
        for begin, end in zip(points, points[1:], strict=False):
            drawn = draw([task] * len(seeds), "train", generators, end - begin)
            losses = population.train(drawn, [schedule(step, points[-1]) for step in range(begin, end)])
            if begin == 0:
                measured.append(torch.cat([losses[:1], at_start]))
            measured.append(torch.cat([losses.mean(0, keepdim=True), _measure(task, population, count, splits)]))
            advance(end - begin)
    curves = torch.stack(measured, -1).reshape(1 + len(splits), len(settings), len(seeds), len(points))
    return dict(zip(("train", *splits), curves.cpu().numpy().astype(np.float64), strict=True))


def _start(
    contender: Contender, task: Task, initial: Sequence[dict[str, Tensor]], settings: Sequence[Setting], steps: int
) -> Population:
    optimizer, hyper = contender.optimizer, [dict(setting) for setting in settings]
    if isinstance(optimizer, UpdateRule):
        return RulePopulation(optimizer, task, initial, hyper, steps)
    known = elementwise(optimizer, contender.arguments, list(contender.axes))
    if known is not None and isinstance(optimizer, type):
        return ElementwisePopulation(optimizer, known, contender.arguments, task, initial, hyper)
    return Alone(contender, task, initial[0], settings[0])


def _measure(task: Task, population: Population, count: int, splits: Sequence[Split]) -> Tensor:
    """The loss of every particle on the fixed batch of every split, (splits, P).

    One particle after the other: a whole split is work enough, and for all at once it would not fit the cache.
    """
    losses = [
        [task.loss(population.weights(p), task.evaluation_batch(split)) for p in range(count)] for split in splits
    ]
    return torch.stack([torch.stack(row) for row in losses])
