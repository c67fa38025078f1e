r"""A probe: one task, trained with the logarithm of the scale shifted by several amounts, and with several powers of
the time left in the scale, from the same weights on the same batches.

The regret of a choice is what it costs over the best of them, on a scale where the whole progress of the best is 1:

    L_c = sum over t of t³ loss_c(t) / sum of t³,    regret_c = (L_c - min L) / (loss(0) - min over c, t of loss_c(t))

with validation losses at evenly spaced times t: the end counts most (a plain mean over the run prefers steps that fall
too soon), but not alone. What the law goes by are the features that say which place a tensor has in its network. Those
of its weights and gradients change during a run, so a law of these would change the schedule of the step, and of that a
probe tells nothing.

Legend of shapes: T tensors, F features of a tensor, A powers, M shifts, S runs of each choice, E evaluations.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lopt.errors import InvalidInput
from lopt.rules import Neuron
from lopt.rules.neuron.layout import STATIC, layout_of
from lopt.weight_space import WeightSpace
from meta_train.horizons import truncations
from meta_train.keys import generator
from meta_train.objectives import ceiling
from meta_train.reference import repeat
from meta_train.unroll import draw, evaluate, sizes_of, start, unroll
from tasks.task import Task

FACTORS = (0.2, 0.45, 1.0, 2.2, 5.0)  # a shift is the logarithm of one; near a scale of 1 it multiplies the step
ANNEALS = (0.6, 1.0, 1.6)  # what the power of the time left is multiplied by
LATE = 3  # the power of the time that weighs a loss
PIECE = 50  # inner steps between two evaluations
FEW = 0.3  # how much a tensor of fewer than two axes counts beside a matrix
WORST = 1.5  # a loss above so many times the initial one counts as this
_NO_PROGRESS = 1e-6  # of the initial loss


class Probe(NamedTuple):
    """What one task tells."""

    features: Tensor  # [T, F]: of each tensor's place in the network
    shares: Tensor  # [T]: how much each tensor counts for the size of a step; they sum to 1
    regrets: Tensor  # [A, M]

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.tolist() for name, value in self._asdict().items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Probe:
        """From what `record` made."""
        return cls(*(torch.tensor(record[name]) for name in cls._fields))


def probe(
    rule: Neuron,
    task: Task,
    horizon: float,
    runs: int,
    seed: int = 0,
    number: int = 0,
    *,
    told: bool = True,
    traced: bool = True,
) -> Probe:
    """Trains a task at the rule's default learning rate with each power and each shift of the scale.

    Args:
        horizon: inner steps; the nearest whole number of pieces of `PIECE`.
        runs: of each choice, with other weights and batches.
        number: of the probe; probes of other numbers have other random numbers.
        told: whether the rule knows the horizon; traced: whether it knows the symmetry, or the shapes alone.

    Raises:
        InvalidInput: no horizon or no run.
    """
    if not horizon > 0 or runs < 1:
        raise InvalidInput(f"horizon={horizon}, runs={runs}: give some inner steps and at least one run")
    space = known_space(task, traced)
    initial = [task.init(generator(seed, "weights", number, run)) for run in range(runs)]
    choices = len(ANNEALS) * len(FACTORS)
    population = start(rule, task, initial * choices)
    like, pieces = next(iter(initial[0].values())), truncations(horizon, PIECE)
    lr = like.new_full((PIECE, choices * runs), rule.default_lr)
    end = like.new_full((lr.shape[1],), float(pieces * PIECE)) if told else None
    sizes = sizes_of([task] * lr.shape[1], like)
    theta, curves = _changed(rule, runs), [evaluate(task, population.params, "validation")]
    for piece in range(pieces):
        sources = [generator(seed, "batches", number, run, piece) for run in range(runs)]
        drawn = draw([task] * runs, "train", sources, PIECE)
        drawn = pytree.tree_map(partial(repeat, count=choices), drawn)
        with torch.no_grad():
            population, _ = unroll(
                rule,
                theta,
                task,
                population,
                drawn,
                lr,
                stacked_theta=True,
                horizon=end,
                sizes=sizes,
                space=space,
            )
        curves.append(evaluate(task, population.params, "validation"))
    losses = torch.stack(curves, 1).unflatten(0, (choices, runs))
    found = regrets(losses.float().cpu()).unflatten(0, (len(ANNEALS), len(FACTORS)))
    return Probe(*places(space), found)


def known_space(task: Task, traced: bool) -> WeightSpace:
    """What the rule is told of the symmetry: the weight space of the task, or its shapes alone."""
    return task.weight_space if traced else WeightSpace.from_shapes(task.weight_space.shapes)


def places(space: WeightSpace) -> tuple[Tensor, Tensor]:
    """Features [T, F] and shares [T] of the tensors: by the logarithm of the size, vectors less than matrices."""
    layout = layout_of(space, torch.device("cpu"), torch.float32)
    shapes = [space.shapes[name] for name in layout.names]
    shares = torch.tensor([math.log1p(math.prod(s)) * (1.0 if len(s) > 1 else FEW) for s in shapes])
    return layout.static, shares / shares.sum()


def regrets(losses: Tensor) -> Tensor:
    """From validation losses [A M, S, E + 1], the first before any step, to regrets [A M], at most 1.

    A task whose loss is not finite before any step tells nothing: no choice is regretted.

    >>> regrets(torch.tensor([[[4.0, 3.0, 2.0]], [[4.0, 2.0, 1.0]], [[4.0, float("nan"), float("inf")]]]))
    tensor([0.3333, 0.0000, 1.0000])
    """
    first = losses[..., :1].mean()
    if not first.isfinite():
        return torch.zeros(len(losses))
    worst = float(ceiling(first, WORST))
    losses = losses.nan_to_num(worst, worst).clamp(max=worst).mean(1)
    weights = torch.arange(1.0, losses.shape[1]) ** LATE
    late = (losses[:, 1:] * weights).sum(1) / weights.sum()
    least = _NO_PROGRESS * float(first.abs()) + torch.finfo(losses.dtype).tiny
    return ((late - late.min()) / (first - losses.min()).clamp(min=least)).clamp(max=1)


def _changed(rule: Neuron, runs: int) -> dict[str, Tensor]:
    """θ for every particle, power-major, then shift-major, [A M S, *θ]."""
    copies = []
    for anneal, factor in itertools.product(ANNEALS, FACTORS):
        changed = copy.deepcopy(rule)
        changed.network.change_scale(torch.zeros(STATIC), math.log(factor), anneal)
        copies += [dict(changed.named_parameters())] * runs
    return {name: torch.stack([theta[name].detach() for theta in copies]) for name in copies[0]}
