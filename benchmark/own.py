"""`benchmark.race` from Python: on a task, or on a module, a loss and a loader of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmark.contender_nodes import build_contender, check_node, find_node
from benchmark.contenders import Contender
from benchmark.outcome import Outcome as SuiteOutcome
from benchmark.outcome import Race
from benchmark.plots import draw_race
from benchmark.race import Result
from benchmark.race import race as race_on_task
from benchmark.step_cost import step_costs
from benchmark.table import terminal_table
from benchmark.verdict import verdict
from benchmark.wording import legend
from benchmark.writing import account_of, write_files
from lopt.errors import InvalidInput
from lopt.rules.rule import UpdateRule
from lopt.weight_space import WeightSpace
from tasks.own_data import OwnData
from tasks.task import Task

WIDTH = 160


@dataclass(frozen=True)
class Outcome:
    """What came out of a race: `print` it for the table, `plot` it, or `save` all files."""

    race: Race

    @property
    def result(self) -> Result:
        """Curves and tunings."""
        return self.race.result

    def table(self, width: int = WIDTH) -> str:
        """The table and the verdict, as text."""
        console = Console(width=width, file=StringIO(), record=True, markup=False, highlight=False)
        result = self.result
        title = f"{result.task}: {result.steps[-1]} steps, {len(result.seeds)} seeds"
        console.print(terminal_table(self.race.rows, self.race.costs.contenders, title, width, result.failures))
        console.print(*verdict(result), legend(result.target), sep="\n", soft_wrap=True)
        return console.export_text()

    def plot(self, path: str | Path) -> Path:
        """Draws the curves and the tuning as a PNG."""
        draw_race(self.result, Path(path))
        return Path(path)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes results.json, curves.png and report.html; returns their paths."""
        outcome = SuiteOutcome(self.result.task, (self.race,), self.result.target)
        account = account_of("benchmark.race(...)", torch.device("cpu"))
        return write_files(outcome, Path(folder), account, {"from": "Python"})

    def __str__(self) -> str:
        return self.table()


@functools.singledispatch
def race(problem: Any, *args: Any, **kwargs: Any) -> Any:
    """Races optimizers on a problem of your own.

        race(model, loss, loader)                        -> Outcome, see `race_on_model`
        race(task, contenders, steps=..., seeds=...)     -> Result, see `benchmark.race.race`

    Raises:
        InvalidInput: `problem` is neither a module nor a task.

    >>> table = torch.utils.data.TensorDataset(torch.randn(60, 3), torch.randn(60, 1))
    >>> loader = torch.utils.data.DataLoader(table, batch_size=8)
    >>> outcome = race(nn.Linear(3, 1), nn.functional.mse_loss, loader, contenders=["adam", "sgdm"], steps=20, seeds=2)
    >>> [entry.label for entry in outcome.result.entries]
    ['Adam', 'SGD with momentum']
    """
    raise InvalidInput(
        f"race: {type(problem).__name__} is neither a torch.nn.Module (then a loss and a loader follow) nor a "
        "tasks.Task (then contenders follow)."
    )


race.register(Task, race_on_task)


@race.register(nn.Module)
def race_on_model(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    contenders: Sequence[str | Contender | UpdateRule] = ("adam", "adam_cosine", "neuron"),
    steps: int = 500,
    seeds: int = 5,
    evaluate_every: int = 10,
    weight_space: WeightSpace | None = None,
) -> Outcome:
    """Races on a module and data of your own. The first contender is the reference.

    The rows of the loader are shuffled once and split into 60 % train, 20 % validation, 20 % test. The weights that
    `model` holds are neither used nor changed: each seed draws its own by `reset_parameters` of a copy.

    Args:
        loss: (outputs, targets) -> ().
        loader: one pass over the data, as batches of inputs and targets; the size of the first is that of a batch.
        contenders: names in configs/contender, files of fitted rules, update rules at their default learning rate, or
            `Contender`s.
        weight_space: of the model; by default what `tasks.weight_space_of` finds.

    Raises:
        InvalidInput: an unknown contender, an empty loader, too few rows, a module that cannot be initialised again, or
            a module or loss that `OwnData` refuses, as BatchNorm and Dropout in training mode.
    """
    batches = [(inputs, targets) for inputs, targets in loader]
    if not batches:
        raise InvalidInput("loader: it gives no batch.")
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    family = OwnData(model, inputs, targets, loss, min(len(batches[0][0]), len(inputs)), weight_space)
    entrants = [_contender(number, each) for number, each in enumerate(contenders, 1)]
    task = family.sample(torch.Generator())
    weight = next(iter(task.init(torch.Generator().manual_seed(0)).values()))
    entrants = [each.to(weight.device, weight.dtype) for each in entrants]
    result = race_on_task(
        task, entrants, steps=steps, seeds=range(seeds), evaluate_every=evaluate_every, target=entrants[0].label
    )
    return Outcome(Race(result, step_costs(task, entrants)))


def _contender(number: int, given: str | Contender | UpdateRule) -> Contender:
    if isinstance(given, Contender):
        return given
    if isinstance(given, UpdateRule):
        return Contender(type(given).__name__, given, (given.default_lr,))
    return build_contender(check_node(number, find_node(given)))
