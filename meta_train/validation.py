"""Meta-validation: how well a θ trains tasks that it is not fitted to. By this the best θ of a run is kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lopt.rules.rule import UpdateRule
from meta_train.arguments import check_whole
from meta_train.horizons import truncations
from meta_train.keys import generator
from meta_train.objectives import MeanLoss, Objective, ceiling, clipped
from meta_train.ranks import mean_over_ranks, world
from meta_train.reference import AdamReference, measure, normalise
from tasks.task import TaskFamily

_SEED = 4096  # of the tasks, apart from those of a run; the same in every run, so that runs can be compared
LOSS_CLIP = 2.0  # the largest loss that counts, in units of the initial loss, as in meta-training


class MetaValidation:
    """The objective of θ, unperturbed, on fixed tasks of a family that is held out.

    Args:
        family: of tasks that are not trained on.
        members: how many populations of it, each with an architecture of its own where the family is a mixture.
        tasks: how many of each.
        horizon, truncation: inner steps of an episode, and of a piece of it.
        objective: by default the mean loss.
        reference: brings losses to the scale of what Adam reaches; None: they stay as they are.
        every: meta-steps between two evaluations.

    Raises:
        InvalidInput: a number is not a whole one of at least 1.
    """

    def __init__(
        self,
        family: TaskFamily,
        members: int = 2,
        tasks: int = 2,
        horizon: int = 500,
        truncation: int = 50,
        objective: Objective | None = None,
        reference: AdamReference | None = None,
        every: int = 50,
    ) -> None:
        numbers = {"members": members, "tasks": tasks, "horizon": horizon, "truncation": truncation, "every": every}
        check_whole(**{f"validation.{name}": value for name, value in numbers.items()})
        self.family, self.members, self.tasks, self.every = family, members, tasks, every
        self.truncation, self.pieces = truncation, truncations(horizon, truncation)
        self.objective, self.reference = objective or MeanLoss(), reference

    def evaluate(self, rule: UpdateRule, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Metrics: "validation", and that of tuned Adam on the same tasks, "validation_adam", if there is a reference.

        The members are shared by the processes.
        """
        rank, count = world()
        names = ["validation"] if self.reference is None else ["validation", "validation_adam"]
        values = torch.zeros(len(names), dtype=torch.float64)
        for number in range(rank, self.members, count):
            values += torch.stack(self._member(rule, theta, number))
        device = next(iter(theta.values())).device
        mean = mean_over_ranks({"values": values.to(device)})["values"].cpu() * count / self.members
        return dict(zip(names, mean, strict=True))

    def _member(self, rule: UpdateRule, theta: Mapping[str, Tensor], number: int) -> list[Tensor]:
        """The objective on one population, and Adam's, if there is a reference."""
        member = self.family.member(generator(_SEED, "member", number))
        tasks = [member.sample(generator(_SEED, "task", number, k)) for k in range(self.tasks)]
        like = next(iter(tasks[0].init(generator(_SEED, "device")).values()))
        lr = like.new_full((self.tasks,), rule.default_lr)
        horizon = like.new_full((self.tasks,), float(self.pieces * self.truncation))
        measured, initial = measure(
            rule, theta, tasks, self.objective, self.truncation, self.pieces, lr, _SEED + number, horizon
        )
        left = torch.arange(self.pieces, 0, -1)
        weight = self.objective.weight(left, torch.full_like(left, self.pieces)).to(measured)[:, None]
        measured = clipped(measured, ceiling(initial, LOSS_CLIP))
        if self.reference is None:
            return [(weight * measured).mean().double().cpu()]
        unit = self.reference.unit(member, self.objective, self.truncation, self.pieces)
        values = weight * normalise(measured, initial, measured.new_tensor(unit.rho))
        return [values.mean().double().cpu(), torch.tensor(unit.adam, dtype=torch.float64)]
