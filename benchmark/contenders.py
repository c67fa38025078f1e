"""Who races: an update rule or an optimizer class, the hyper-parameters that it may run at, and its schedule."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmark.grids import Grid, Setting, as_grid
from benchmark.schedules import SCHEDULES
from lopt.errors import InvalidInput, unknown
from lopt.optimizer import LearnedOptimizer
from lopt.rules.rule import UpdateRule
from lopt.weight_space import WeightSpace

MakeOptimizer: TypeAlias = Callable[..., Optimizer]  # (named parameters, **hyper-parameters) -> optimizer


@dataclass(frozen=True)
class Contender:
    """One entrant of a race.

    Args:
        label: what tables and plots call it.
        optimizer: an update rule, on the task's device; or a class of `torch.optim`, or any callable that takes named
            parameters and hyper-parameters and returns a `torch.optim.Optimizer`.
        grid: learning rates in rising order, or values for each hyper-parameter by name, "lr" among them. One
            combination: it runs at that. Several: the best on validation data is taken.
        schedule: of the learning rate, a name in `SCHEDULES`.
        about: what a table must say of it: the file that it comes from, "before meta-training".
        arguments: hyper-parameters that stay as they are.
        card: of the checkpoint that it comes from.

    Raises:
        InvalidInput: an empty label, an unknown schedule, a grid that is empty, unsorted or not positive, a
            hyper-parameter that the optimizer does not have.

    >>> import torch
    >>> Contender("AdamW", torch.optim.AdamW, {"lr": (1e-3, 1e-2), "weight_decay": (0, 0.1)}).tuned
    True
    """

    label: str
    optimizer: UpdateRule | MakeOptimizer
    grid: Mapping[str, Any] | Sequence[float]
    schedule: str = "constant"
    about: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise InvalidInput("label: empty; every contender needs a name for the table.")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        object.__setattr__(self, "grid", as_grid(self.label, self.grid))
        self._check_names()

    def _check_names(self) -> None:
        names = [*self.axes, *self.arguments]
        if twice := set(self.axes) & set(self.arguments):
            raise InvalidInput(f"{min(twice)} of {self.label!r}: in the grid and among the arguments; give it once.")
        if isinstance(self.optimizer, UpdateRule):
            known = {"lr"}
        else:
            parameters = inspect.signature(self.optimizer).parameters.values()
            if any(p.kind is p.VAR_KEYWORD for p in parameters):
                return
            known = {p.name for p in parameters} - {"params"}
        for name in names:
            if name not in known:
                raise unknown(f"hyper-parameter of {self.label!r}", name, known)

    @property
    def axes(self) -> Grid:
        """The grid, with a tuple of values for each name."""
        assert isinstance(self.grid, dict)
        return self.grid

    @property
    def tuned(self) -> bool:
        """Whether its hyper-parameters are chosen on validation data."""
        return any(len(values) > 1 for values in self.axes.values())

    @property
    def kind(self) -> str:
        """The name of the rule, class or function."""
        rule = self.optimizer
        return type(rule).__name__ if isinstance(rule, UpdateRule) else getattr(rule, "__name__", type(rule).__name__)

    @property
    def default_lr(self) -> float | None:
        """The learning rate at which it runs unless told otherwise; None: it has none."""
        if isinstance(self.optimizer, UpdateRule):
            return self.optimizer.default_lr
        parameter = inspect.signature(self.optimizer).parameters.get("lr")
        default = None if parameter is None else parameter.default
        return float(default) if isinstance(default, int | float) else None

    def to(self, device: torch.device, dtype: torch.dtype) -> Contender:
        """The same, with a copy of an update rule there; the rule itself stays as it is."""
        if isinstance(self.optimizer, UpdateRule):
            return replace(self, optimizer=copy.deepcopy(self.optimizer).to(device, dtype))
        return self

    def make(self, named: Sequence[tuple[str, Tensor]], setting: Setting, space: WeightSpace) -> Optimizer:
        """The optimizer of some parameters at one setting."""
        if isinstance(self.optimizer, UpdateRule):
            return LearnedOptimizer(named, rule=self.optimizer, weight_space=space, **dict(setting))
        return self.optimizer(named, **dict(self.arguments), **dict(setting))


def check_field(labels: Iterable[str], **roles: str | None) -> None:
    """Raises `InvalidInput` unless the labels are all different and each named role is played by one of them."""
    labels = list(labels)
    for label in labels:
        if labels.count(label) > 1:
            raise InvalidInput(f"label: {label!r} stands {labels.count(label)} times; give every contender its own.")
    for role, label in roles.items():
        if label is not None and label not in labels:
            raise unknown(f"contender (as {role})", label, labels)
