"""The pure updates against the classes of torch.optim whose equations they are, run by run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from benchmark.alone import Alone
from benchmark.contenders import Contender
from benchmark.elementwise import UPDATES, elementwise
from benchmark.grids import settings_of
from benchmark.population import ElementwisePopulation
from benchmark.schedules import SCHEDULES
from meta_train.unroll import draw
from tasks.quadratic import Quadratic
from tasks.task import Task

STEPS, SEEDS = 25, (3, 4)
RATES = (0.003, 0.03)


def weights_after(
    optimizer: type, arguments: Mapping[str, Any], grid: Mapping[str, Any], schedule: str, task: Task, together: bool
) -> list[torch.Tensor]:
    """The weights of every particle after some steps, as one vector each; setting-major."""
    contender = Contender("x", optimizer, grid, schedule, arguments=arguments)
    settings = settings_of(contender.axes)
    factors = [SCHEDULES[schedule](step, STEPS) for step in range(STEPS)]
    known = elementwise(optimizer, arguments, list(grid))
    assert known is not None

    def start() -> tuple[list[dict[str, torch.Tensor]], Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        return [task.init(g) for g in generators], draw([task] * len(SEEDS), "train", generators, STEPS)

    if together:
        initial, drawn = start()
        hyper = [dict(setting) for setting in settings]
        population = ElementwisePopulation(optimizer, known, arguments, task, initial, hyper)
        with torch.no_grad():
            population.train(drawn, factors)
        each = [population.weights(p) for p in range(len(settings) * len(SEEDS))]
    else:
        each = []
        for setting in settings:
            initial, drawn = start()
            for number, first in enumerate(initial):
                alone = Alone(contender, task, first, setting)
                alone.train(drawn[:, number : number + 1], factors)
                each.append(alone.weights(0))
    return [torch.cat([value.flatten() for value in weights.values()]) for weights in each]


@pytest.mark.parametrize("schedule", ["constant", "cosine_with_warm_up"])
@pytest.mark.parametrize(
    ("optimizer", "arguments", "more"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, {}),
        (torch.optim.SGD, {"weight_decay": 0.1}, {"momentum": (0.0, 0.9)}),
        (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, {}),
        (torch.optim.Adam, {}, {}),
        (torch.optim.Adam, {"weight_decay": 0.1, "eps": 1e-4}, {"betas": ((0.9, 0.99), (0.5, 0.9))}),
        (torch.optim.AdamW, {}, {"weight_decay": (0, 0.1, 1.0)}),
        (torch.optim.NAdam, {}, {"weight_decay": (0, 0.1)}),
        (torch.optim.NAdam, {"decoupled_weight_decay": True}, {"weight_decay": (0.1, 1.0)}),
    ],
)
def test_a_population_makes_the_trajectories_of_torch_optim(
    make_task: Callable[..., Task], optimizer: type, arguments: dict[str, Any], more: dict[str, Any], schedule: str
) -> None:
    grid = {"lr": RATES, **more}
    together, alone = (weights_after(optimizer, arguments, grid, schedule, make_task(), way) for way in (True, False))
    assert len(together) == len(alone) >= 4
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)  # seeds differ
    assert not torch.allclose(together[0], together[-2], atol=1e-3)  # settings differ


def test_in_double_precision_they_agree_to_its_digits() -> None:
    task = Quadratic(dimensions=6, dtype="float64").sample(torch.Generator())
    ways = [weights_after(torch.optim.Adam, {}, {"lr": RATES}, "constant", task, way) for way in (True, False)]
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "names"),
    [
        (torch.optim.Adam, {"amsgrad": True}, ["lr"]),
        (torch.optim.SGD, {}, ["lr", "dampening"]),
        (torch.optim.Adagrad, {}, ["lr"]),
        (lambda params, lr: torch.optim.Adam(params, lr), {}, ["lr"]),
    ],
)
def test_what_is_not_known_is_left_to_the_class(optimizer: Any, arguments: dict[str, Any], names: list[str]) -> None:
    assert elementwise(optimizer, arguments, names) is None


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Other(torch.optim.Adam):
        pass

    assert elementwise(Other, {}, ["lr"]) is None
    assert torch.optim.AdamW in UPDATES  # a subclass of Adam in torch, with an update of its own
