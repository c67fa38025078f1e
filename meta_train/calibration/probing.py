r"""A probe: one task, trained at several multiples of the learning rate with the same weights and batches.

The regret of a multiple is what it costs over the best of them, on a scale where the whole progress of the best is 1:

    L_m = sum over t of t loss_m(t) / sum of t,    regret_m = (L_m - min L) / (loss(0) - min over m, t of loss_m(t))

with validation losses at evenly spaced times t, so that late ones count more.

Legend of shapes: T tensors, F features of a tensor, M multiples, S runs of each, E evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from lopt.errors import InvalidInput
from lopt.rules import Neuron
from lopt.rules.rule import Clock
from meta_train.keys import generator
from meta_train.unroll import Population, draw, evaluate, start, unroll
from tasks.task import Batch, Task

MULTIPLES = (0.2, 0.45, 1.0, 2.2, 5.0)
PIECE = 50  # inner steps between two evaluations
FEW = 0.3  # how much a tensor of fewer than two axes counts beside a matrix
WORST = 1.5  # a loss above so many times the initial one counts as this
_NO_PROGRESS = 1e-6


class Probe(NamedTuple):
    """What one task tells."""

    features: Tensor  # [T, F]: of each tensor, mean over the run at the multiple 1
    weights: Tensor  # [T]: how much each tensor counts for the size of a step; they sum to 1
    regrets: Tensor  # [M]

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.tolist() for name, value in self._asdict().items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Probe:
        """From what `record` made."""
        return cls(*(torch.tensor(record[name]) for name in cls._fields))


def probe(rule: Neuron, task: Task, horizon: int, seeds: int, seed: int = 0) -> Probe:
    """Trains a task at each of `MULTIPLES` times the rule's default learning rate.

    Args:
        horizon: inner steps, rounded to pieces of `PIECE`.
        seeds: runs of each multiple, with other weights and batches.

    Raises:
        InvalidInput: a horizon below one piece, or no seed.
    """
    if horizon < PIECE or seeds < 1:
        raise InvalidInput(f"horizon={horizon}, seeds={seeds}: give at least {PIECE} inner steps and one seed")
    theta = {name: p.detach() for name, p in rule.named_parameters()}
    weights = [task.init(generator(seed, "weights", number)) for number in range(seeds)]
    population = start(rule, task, weights * len(MULTIPLES))
    lr = rule.default_lr * torch.tensor(MULTIPLES).repeat_interleave(seeds).expand(PIECE, -1)
    end = torch.full((lr.shape[1],), float(horizon // PIECE * PIECE))
    curves, features = [evaluate(task, population.params, "validation")], []
    for piece in range(horizon // PIECE):
        sources = [generator(seed, "batches", number, piece) for number in range(seeds)]
        drawn = draw([task] * seeds, "train", sources, PIECE)
        drawn = pytree.tree_map(lambda x: torch.cat([x] * len(MULTIPLES), 1), drawn)
        with torch.no_grad():
            population, _ = unroll(rule, theta, task, population, drawn, lr, horizon=end)
        curves.append(evaluate(task, population.params, "validation"))
        batch = task.batch("train", generator(seed, "features", piece))
        features.append(_features(rule, task, population, MULTIPLES.index(1.0) * seeds, batch, end))
    losses = torch.stack(curves, 1).unflatten(0, (len(MULTIPLES), seeds)).mean(1)
    return Probe(torch.stack(features).mean(0), tensor_weights(task), regrets(losses))


def tensor_weights(task: Task) -> Tensor:
    """[T]: by the logarithm of a tensor's size, in the order of the weight space; vectors count less than matrices."""
    shapes = task.weight_space.shapes.values()
    weights = torch.tensor([math.log1p(math.prod(s)) * (1.0 if len(s) > 1 else FEW) for s in shapes])
    return weights / weights.sum()


def regrets(losses: Tensor) -> Tensor:
    """From validation losses [M, E + 1], the first before any step, to regrets [M], at most 1.

    >>> regrets(torch.tensor([[4.0, 3.0, 2.0], [4.0, 2.0, 1.0], [4.0, float("nan"), float("inf")]]))
    tensor([0.3333, 0.0000, 1.0000])
    """
    first = losses[:, 0].mean()
    worst = float(first + (WORST - 1) * first.abs())
    losses = losses.nan_to_num(worst, worst).clamp(max=worst)
    times = torch.arange(1.0, losses.shape[1])
    late = (losses[:, 1:] * times).sum(1) / times.sum()
    return ((late - late.min()) / (first - losses.min()).clamp(min=_NO_PROGRESS)).clamp(max=1)


def _features(rule: Neuron, task: Task, population: Population, place: int, batch: Batch, end: Tensor) -> Tensor:
    """[T, F]: what the law of the scale is shown at the next step of one particle."""
    seen: list[Tensor] = []
    hook = rule.network.scale_law.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    params, state = pytree.tree_map(lambda x: x[place], (population.params, population.state))
    grads, loss = grad_and_value(task.loss)(params, batch)
    try:
        with torch.no_grad():
            rule(task.weight_space, params, grads, state, Clock(population.step[place], end[place], loss))
    finally:
        hook.remove()
    return seen[0]
