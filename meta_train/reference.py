r"""What tuned Adam reaches on a kind of task: the unit in which losses of different tasks are compared.

$$ \tilde L = \frac{L / L_0 - \rho}{\max(1 - \rho, \text{guard})} $$

where L_0 is the particle's own loss before its first update and ρ what Adam reaches at the horizon, as a share of its
L_0: so every task begins at 1, and Adam ends it at 0, whatever the scale of its loss, its parameters or its data. ρ is
measured once for each kind of task and kept on disk, by content: by the weights, the batches and the settings.

Legend of shapes: R learning rates, S tasks, P = R S particles (rate-major), K truncations.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lopt.errors import InvalidInput
from lopt.rules import Adam
from lopt.rules.rule import UpdateRule
from meta_train.keys import generator
from meta_train.objectives import Objective
from meta_train.saving import write_atomically
from meta_train.unroll import draw, sizes_of, start, unroll
from tasks.task import Split, Task, TaskFamily

# Where Adam gains less than this share of the initial loss, the gain is mostly noise, and dividing by it would make
# that noise weigh as much as the progress on other tasks.
GUARD = 0.05
_FORMAT = 1  # raise it when the measurement changes
_SEED = 1412  # of the tasks that Adam is measured on; apart from those of a run by the name of their generators


class Unit(NamedTuple):
    """The measure of an objective on a kind of task."""

    rho: float  # what Adam reaches at the horizon, as a share of the initial loss
    adam: float  # the objective of the best Adam, in this unit


def normalise(losses: Tensor, initial: Tensor, rho: Tensor) -> Tensor:
    """Losses on Adam's scale; all (P,), or what broadcasts with it.

    An initial loss that is no positive number sets no scale, and counts as 1.
    """
    known = torch.where(initial.isfinite() & (initial > 0), initial, torch.ones_like(initial))
    return (losses / known - rho) / (1 - rho).clamp_min(GUARD)


class AdamReference:
    """Adam at the best constant of several learning rates.

    Args:
        rates: learning rates in rising order.
        tasks: how many tasks of a kind are averaged over.

    Raises:
        InvalidInput: no rates or no tasks.
    """

    def __init__(self, rates: Sequence[float] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), tasks: int = 2) -> None:
        self.rates = [float(rate) for rate in rates]
        if not self.rates or not all(rate > 0 for rate in self.rates):
            raise InvalidInput(f"reference.rates: {self.rates}; give at least one learning rate above 0")
        if tasks < 1:
            raise InvalidInput(f"reference.tasks: {tasks}; give at least 1")
        self.tasks = tasks
        self._curves: dict[str, Tensor] = {}
        self._keys: WeakKeyDictionary[TaskFamily, dict[tuple[Objective, int], str]] = WeakKeyDictionary()

    def unit(self, member: TaskFamily, objective: Objective, truncation: int, count: int) -> Unit:
        """The unit of an episode of `count` truncations, measured where it is not known.

        Raises:
            InvalidInput: the initial loss is not positive and finite, or Adam diverges at every rate.
        """
        curves = self.curves(member, objective, truncation, count)[:, :count]  # (R, K)
        curves = curves[curves.isfinite().all(1)]
        if not len(curves):
            raise InvalidInput(
                f"reference.rates: Adam diverges at all of {self.rates} on {member.name!r}. Give smaller rates, or "
                "objective=raw_mean"
            )
        rho = curves[:, -1].min()
        length = torch.full((count,), count)
        weights = objective.weight(torch.arange(count, 0, -1), length).to(curves.dtype)
        values = (normalise(curves, torch.ones(()), rho) * weights).mean(1)
        return Unit(float(rho), float(values.min()))

    def curves(self, member: TaskFamily, objective: Objective, truncation: int, count: int) -> Tensor:
        """The objective's measure of every truncation, as a share of the initial loss, by learning rate: (R, K)."""
        keys = self._keys.setdefault(member, {})
        if (objective, truncation) not in keys:
            keys[objective, truncation] = self._key(self._tasks(member), objective, truncation)
        key = keys[objective, truncation]
        known = self._curves.get(key)
        if known is None:
            known = self._curves[key] = _read(key, len(self.rates))
        if known.shape[1] < count:
            known = self._curves[key] = self._measure(self._tasks(member), objective, truncation, count)
            _keep(key, known)
        return known

    def _tasks(self, member: TaskFamily) -> list[Task]:
        return [member.sample(generator(_SEED, "reference", k)) for k in range(self.tasks)]

    def _measure(self, tasks: list[Task], objective: Objective, truncation: int, count: int) -> Tensor:
        device = next(iter(tasks[0].init(generator(_SEED, "device")).values())).device
        rule = Adam().to(device)
        lr = torch.tensor(self.rates, device=device).repeat_interleave(len(tasks))
        measured, initial = measure(rule, dict(rule.named_parameters()), tasks, objective, truncation, count, lr, _SEED)
        if not bool((initial.isfinite() & (initial > 0)).all()):
            raise InvalidInput(
                f"family: the initial losses of {tasks[0].name!r} are {initial.tolist()[: len(tasks)]}, and only "
                "positive ones can be compared with Adam's. Add a constant to the loss, or set objective=raw_mean"
            )
        shares = (measured / initial).unflatten(1, (len(self.rates), len(tasks)))
        return shares.mean(2).t().double().cpu()

    def _key(self, tasks: list[Task], objective: Objective, truncation: int) -> str:
        """Equal for equal tasks and settings: made of what the tasks hold and give.

        A batch is a few rows of the data. So what every split is measured on counts as well, and so do the tensors that
        a task holds, since a split may be measured on a part of its rows.
        """
        digest = hashlib.sha256()
        settings = {key: value for key, value in vars(objective).items() if not key.startswith("_")}
        words = [_FORMAT, self.rates, len(tasks), objective.name, settings, truncation]
        for k, task in enumerate(tasks):
            source = generator(_SEED, "content", k)
            params, batch = task.init(source), task.batch("train", source)
            words += [task.name, repr(task.module), repr(task.weight_space), float(task.loss(params, batch)).hex()]
            splits = [task.evaluation_batch(split) for split in get_args(Split)]
            for leaf in [*pytree.tree_leaves((params, batch, splits)), *_held(task)]:
                words.append((leaf.dtype, tuple(leaf.shape)))
                digest.update(leaf.detach().cpu().flatten().view(torch.uint8).numpy().data)
        digest.update(repr(words).encode())
        return digest.hexdigest()[:32]


def _held(thing: object) -> Iterator[Tensor]:
    """The tensors that a task, or what it is made of, has for attributes."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        yield from (x for part in thing.values() for x in _held(part))
    elif isinstance(thing, list | tuple):
        yield from (x for part in thing for x in _held(part))
    elif isinstance(thing, Task):
        yield from _held(vars(thing))


@torch.no_grad()
def measure(
    rule: UpdateRule,
    theta: Mapping[str, Tensor],
    tasks: Sequence[Task],
    objective: Objective,
    truncation: int,
    count: int,
    lr: Tensor,
    seed: int,
    horizon: Tensor | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Trains every task at every learning rate, all from the same weights on the same batches.

    Args:
        tasks: S, of one population.
        lr: (P,), rate-major.
        horizon: (P,) if the rule is to know it.

    Returns:
        The objective's measure of every truncation, (K, P), and the loss before the first update, (P,).
    """
    repeats = len(lr) // len(tasks)
    weights = [task.init(generator(seed, "reference weights", k)) for k, task in enumerate(tasks)]
    population = start(rule, tasks[0], weights * repeats)
    measured, initial, sizes = [], None, sizes_of([*tasks] * repeats, lr)
    copied = functools.partial(repeat, count=repeats)
    for piece in range(count):
        sources = [generator(seed, "reference batch", k, piece) for k in range(len(tasks))]
        drawn = pytree.tree_map(copied, draw(tasks, "train", sources, truncation))
        population, losses = unroll(
            rule,
            theta,
            tasks[0],
            population,
            drawn,
            lr.expand(truncation, -1),
            horizon=horizon,
            sizes=sizes,
            compiled=compiled,
        )
        initial = losses[0] if initial is None else initial
        validation = None
        if objective.validates:
            batches = pytree.tree_map(copied, draw(tasks, "validation", sources, 1))
            validation = losses_on(tasks[0], population.params, batches)
        measured.append(objective.measure(losses, validation))
    assert initial is not None
    return torch.stack(measured), initial


def losses_on(task: Task, params: Mapping[str, Tensor], drawn: Tensor) -> Tensor:
    """The validation loss of every particle on its first drawn batch: drawn (1, P, ...) -> (P,)."""

    def loss(own: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return task.loss(own, task.gather("validation", batch))

    return torch.func.vmap(loss)(params, pytree.tree_map(lambda leaf: leaf[0], drawn))


def repeat(leaf: Tensor, count: int) -> Tensor:
    """What was drawn for some particles, (T, P, ...), for as many copies of them, copy-major."""
    return torch.cat([leaf] * count, 1)


def _path(key: str) -> Path:
    return Path(os.environ.get("LOPT_CACHE") or "~/.cache/lopt").expanduser() / "adam" / f"{key}.json"


def _read(key: str, rates: int) -> Tensor:
    """The curves in the cache; none, (R, 0), where there are none or they are damaged."""
    nothing = torch.zeros(rates, 0, dtype=torch.float64)
    try:
        rows = json.loads(_path(key).read_text())
        found = torch.tensor([[float("nan") if x is None else x for x in row] for row in rows], dtype=torch.float64)
    except (OSError, ValueError, TypeError):
        return nothing
    return found if found.dim() == 2 and len(found) == rates else nothing


def _keep(key: str, curves: Tensor) -> None:
    rows = [[x if math.isfinite(x) else None for x in row] for row in curves.tolist()]
    try:
        write_atomically(_path(key), json.dumps(rows).encode())
    except OSError as error:
        warnings.warn(f"Adam's losses are not kept ({error}). Set LOPT_CACHE to a writable folder", stacklevel=4)
