"""What one step costs: an optimizer's own as a multiple of Adam's, and a whole training step's for the clock."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from benchmark.contenders import Contender
from tasks.task import Task

WARM_UP = 5  # rounds that are not counted: first calls allocate the state
ADAM, GRADIENT = "\0adam", "\0gradient"  # no label of a contender
LR = 1e-6  # so small that the weights stay where they are: the time should not depend on a run's fate


class StepCost(NamedTuple):
    """The median time of an optimizer's step, and its ratio to that of torch.optim.Adam(foreach=True)."""

    milliseconds: float
    ratio: float


class StepCosts(NamedTuple):
    """What was measured on one task, in one process, all taking turns."""

    adam: float  # milliseconds of a step of torch.optim.Adam(foreach=True)
    gradient: float  # milliseconds of a loss and its gradient
    contenders: Mapping[str, StepCost]

    def training_step(self, label: str) -> float | None:
        """Milliseconds of a gradient and a step."""
        cost = self.contenders.get(label)
        return None if cost is None else self.gradient + cost.milliseconds


def step_costs(task: Task, contenders: Sequence[Contender], rounds: int = 50) -> StepCosts:
    """Times the gradient of a task, and `step()` of every contender and of Adam on copies of its module.

    All of them take turns in one process, so that whatever slows the machine slows all alike. A contender that cannot
    make a step has no cost.
    """
    adam = _with_gradients(task)
    device = next(adam.parameters()).device
    actions: dict[str, Callable[[], object]] = {}
    for contender in contenders:
        named = list(_with_gradients(task).named_parameters())
        setting = tuple((name, LR if name == "lr" else values[0]) for name, values in contender.axes.items())
        try:
            optimizer = contender.make(named, setting, task.weight_space)
            if callable(switch := getattr(optimizer, "train", None)):  # of the schedule-free ones
                switch()
        except Exception:  # as below
            continue
        actions[contender.label] = optimizer.step
    timed = {ADAM: torch.optim.Adam(adam.parameters(), lr=LR, foreach=True).step, GRADIENT: _gradient(task), **actions}
    medians = _medians(timed, rounds, device)
    first, gradient = medians.pop(ADAM), medians.pop(GRADIENT)
    return StepCosts(first, gradient, {label: StepCost(cost, cost / first) for label, cost in medians.items()})


def _medians(timed: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each action, in turns. One that raises drops out."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(WARM_UP + rounds):
        for name in list(times):
            _wait(device)
            begin = time.perf_counter()
            try:
                timed[name]()
            except Exception:  # its cell in the race says why
                del times[name]
                continue
            _wait(device)
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _gradient(task: Task) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    params = {name: value.requires_grad_() for name, value in task.init(generator).items()}
    batch = task.batch("train", generator)
    return lambda: torch.autograd.grad(task.loss(params, batch), list(params.values()))


def _with_gradients(task: Task) -> nn.Module:
    """The task's module where the task's weights live, with initial weights and gradients of one fixed draw."""
    generator = torch.Generator().manual_seed(0)
    weights = task.init(generator)
    module = copy.deepcopy(task.module)
    for name, parameter in module.named_parameters():
        parameter.data = weights[name].clone()
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
