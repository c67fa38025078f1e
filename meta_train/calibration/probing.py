r"""A probe: one task, trained at several multiples of the learning rate with the same weights and batches.

The regret of a multiple is what it costs over the best of them, on a scale where the whole progress of the best is 1:

    L_m = sum over t of t loss_m(t) / sum of t,    regret_m = (L_m - min L) / (loss(0) - min over m, t of loss_m(t))

with validation losses at evenly spaced times t, so that late ones count more. What the law goes by are the features
that say which place a tensor has in its network. Those of its weights and gradients change during a run, so a law of
these would change the schedule of the step, and of that a probe tells nothing.

Legend of shapes: T tensors, F features of a tensor, M multiples, E evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lopt.errors import InvalidInput
from lopt.rules import Neuron
from lopt.rules.neuron.layout import layout_of
from lopt.weight_space import WeightSpace
from meta_train.keys import generator
from meta_train.unroll import draw, evaluate, start, unroll
from tasks.task import Task

MULTIPLES = (0.2, 0.45, 1.0, 2.2, 5.0)
PIECE = 50  # inner steps between two evaluations
FEW = 0.3  # how much a tensor of fewer than two axes counts beside a matrix
WORST = 1.5  # a loss above so many times the initial one counts as this
_NO_PROGRESS = 1e-6


class Probe(NamedTuple):
    """What one task tells."""

    features: Tensor  # [T, F]: of each tensor's place in the network
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
    like = next(iter(weights[0].values()))
    lr = rule.default_lr * like.new_tensor(MULTIPLES).repeat_interleave(seeds).expand(PIECE, -1)
    end = like.new_full((lr.shape[1],), float(horizon // PIECE * PIECE))
    curves = [evaluate(task, population.params, "validation")]
    for piece in range(horizon // PIECE):
        sources = [generator(seed, "batches", number, piece) for number in range(seeds)]
        drawn = draw([task] * seeds, "train", sources, PIECE)
        drawn = pytree.tree_map(lambda x: torch.cat([x] * len(MULTIPLES), 1), drawn)
        with torch.no_grad():
            population, _ = unroll(rule, theta, task, population, drawn, lr, horizon=end)
        curves.append(evaluate(task, population.params, "validation"))
    losses = torch.stack(curves, 1).unflatten(0, (len(MULTIPLES), seeds)).mean(1)
    return Probe(*places(task.weight_space), regrets(losses.float().cpu()))


def places(space: WeightSpace) -> tuple[Tensor, Tensor]:
    """Features [T, F] and weights [T] of the tensors: by the logarithm of the size, vectors less than matrices."""
    layout = layout_of(space, torch.device("cpu"), torch.float32)
    shapes = [space.shapes[name] for name in layout.names]
    weights = torch.tensor([math.log1p(math.prod(s)) * (1.0 if len(s) > 1 else FEW) for s in shapes])
    return layout.static, weights / weights.sum()


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
