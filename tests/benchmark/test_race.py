"""The race itself: one population equals the runs one by one; tuning sees validation data alone; nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.contenders import Contender
from benchmark.grids import Setting, widened
from benchmark.measures import Array
from benchmark.race import race
from benchmark.runs import evaluation_points, runs
from benchmark.schedules import SCHEDULES
from benchmark.standings import standings
from benchmark.tuning import tune
from lopt.errors import InvalidInput
from lopt.rules import SGDM, Adam, Functional, PerParameter
from tasks.task import Task

GRID = (0.01, 0.1, 1.0)
MakeTask = Callable[..., Task]


def rates_of(*rates: float) -> list[Setting]:
    return [(("lr", rate),) for rate in rates]


def alone(task: Task, lr: float, seed: int, steps: int, schedule: str) -> tuple[list[float], float]:
    """The plain PyTorch loop that a person would write: training losses, and the last test loss."""
    generator = torch.Generator().manual_seed(seed)
    params = {name: value.requires_grad_() for name, value in task.init(generator).items()}
    optimizer = torch.optim.SGD(params.values(), lr=lr, momentum=0.9)
    train = []
    for step in range(steps):
        loss = task.loss(params, task.batch("train", generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * SCHEDULES[schedule](step, steps)
        optimizer.step()
        train.append(loss.item())
    return train, task.loss(params, task.evaluation_batch("test")).item()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_population_equals_each_run_alone(make_task: MakeTask, schedule: str) -> None:
    task = make_task()
    contender = Contender("SGDM", SGDM(), (0.01, 0.05), schedule)
    curves = runs(contender, task, rates_of(0.01, 0.05), (3, 4, 5), evaluation_points(7, 3), ("test",))
    assert curves["test"].shape == (2, 3, 4)
    for i, lr in enumerate((0.01, 0.05)):
        for j, seed in enumerate((3, 4, 5)):
            train, test = alone(task, lr, seed, 7, schedule)
            assert curves["test"][i, j, -1] == pytest.approx(test, rel=1e-4)
            means = [train[0], np.mean(train[:3]), np.mean(train[3:6]), train[6]]
            assert curves["train"][i, j] == pytest.approx(means, rel=1e-4)


def test_weights_and_batches_are_the_same_for_every_contender(make_task: MakeTask) -> None:
    contenders = [Contender("Adam", Adam(), GRID), Contender("learned", PerParameter(), (1.0,))]
    result = race(make_task(), contenders, steps=4, seeds=(0, 1), evaluate_every=2, max_widenings=0)
    first, second = (entry.curves for entry in result.entries)
    assert first.test[:, 0] == pytest.approx(second.test[:, 0])
    assert first.train[:, 0] == pytest.approx(second.train[:, 0])  # the loss of the first batch before any update
    assert len(np.unique(first.test[:, 0])) == 2  # seeds differ


def test_test_data_do_not_reach_tuning(make_task: MakeTask) -> None:
    def tuned(task: Task) -> list[tuple[float, tuple[float, ...]]]:
        contenders = [Contender("Adam", Adam(), GRID), Contender("SGDM", SGDM(), GRID, "cosine")]
        result = race(task, contenders, steps=20, seeds=(0, 1, 2), evaluate_every=10)
        return [(entry.tuning.lr, entry.tuning.losses) for entry in result.entries]

    assert tuned(make_task()) == tuned(make_task(test_shift=1e6)) == tuned(make_task(test_shift=float("nan")))


def parabola(best: float) -> Callable[[Sequence[Setting]], Array]:
    """Validation curves, two seeds, whose final loss is lowest at `best`."""

    def run(settings: Sequence[Setting]) -> Array:
        finals = np.log10(np.asarray([dict(setting)["lr"] for setting in settings]) / best) ** 2
        return np.stack([[[100.0, final], [100.0, final]] for final in finals])

    return run


@pytest.mark.parametrize(("best", "widenings"), [(0.1, 0), (1e-4, 2), (1e4, 3), (1e-3, 1)])
def test_a_grid_is_widened_until_its_winner_lies_inside(best: float, widenings: int) -> None:
    asked: list[float] = []

    def run(settings: Sequence[Setting]) -> Array:
        asked.extend(dict(setting)["lr"] for setting in settings)
        return parabola(best)(settings)

    tuning = tune({"lr": GRID}, run, 4)
    assert tuning.lr == pytest.approx(best)
    assert not tuning.on_edge
    assert tuning.widenings == widenings
    assert sorted(asked) == list(tuning.rates)  # every rate ran once


def test_widening_ends_and_says_so() -> None:
    tuning = tune({"lr": GRID}, parabola(1e-30), 3)
    assert tuning.widenings == 3
    assert tuning.on_edge
    assert len(tuning.rates) == 9
    single = tune({"lr": (0.1,)}, parabola(1e-30), 3)
    assert single.rates == (0.1,)
    assert not single.on_edge


def test_widening_keeps_the_ratio() -> None:
    assert widened([1, 2, 4], upward=True, count=2) == [8, 16]
    assert widened([1, 2, 8], upward=False, count=2) == [0.25, 0.5]


def test_a_seed_that_diverges_spoils_its_rate() -> None:
    def run(settings: Sequence[Setting]) -> Array:
        # At 0.1 one seed ends very low and the other diverges; 1.0 is mediocre but sound, 10.0 is worse.
        ends = {0.1: (0.0, np.nan), 1.0: (0.5, 0.5), 10.0: (0.6, 0.6)}
        return np.stack([[[1.0, end] for end in ends[dict(setting)["lr"]]] for setting in settings])

    tuning = tune({"lr": (0.1, 1.0, 10.0)}, run, 0)
    assert tuning.lr == 1.0
    assert tuning.losses[0] == np.inf
    assert tuning.diverged == (1, 0, 0)


def test_where_everything_diverges_lower_rates_are_tried() -> None:
    def run(settings: Sequence[Setting]) -> Array:
        rates = [dict(setting)["lr"] for setting in settings]
        return np.stack([[[1.0, np.nan if r >= 0.5 else r]] * 2 for r in rates])

    assert tune({"lr": (1.0, 10.0)}, run, 4).lr < 0.5


def test_diverged_runs_are_counted(make_task: MakeTask) -> None:
    contenders = [Contender("Adam", Adam(), (0.1,)), Contender("SGDM", SGDM(), (1e3,))]
    result = race(make_task(), contenders, steps=40, seeds=(0, 1, 2), evaluate_every=20)
    sound, broken = standings(result)
    assert (sound.label, sound.diverged) == ("Adam", 0)
    assert (broken.label, broken.diverged) == ("SGDM", 3)
    assert broken.final.mean == np.inf
    assert broken.speed is not None
    assert broken.speed.steps is None


def test_the_same_race_gives_the_same_numbers(make_task: MakeTask) -> None:
    def once() -> list[Array]:
        result = race(
            make_task(), [Contender("Adam", Adam(), GRID)], steps=10, seeds=(0, 1), evaluate_every=5, max_widenings=1
        )
        return list(result["Adam"].curves)

    for one, other in zip(once(), once(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 4}, "steps: 4 is less than evaluate_every, 5"),
        ({"seeds": (0,)}, "seeds: 1 gives no standard error"),
        ({"seeds": (0, 0)}, "holds one twice"),
        ({"evaluate_every": 0}, "evaluate_every: 0"),
        ({"target": "Adan"}, "did you mean 'Adam'"),
    ],
)
def test_bad_input(make_task: MakeTask, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"steps": 10, "seeds": (0, 1), "evaluate_every": 5, "target": "Adam"}
    with pytest.raises(InvalidInput, match=message):
        race(make_task(), [Contender("Adam", Adam(), GRID)], **arguments | change)


def test_a_rule_for_another_network_is_refused_before_the_race(make_task: MakeTask) -> None:
    other = Functional({"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "out=2, h:4", "2.bias": "out=2"})
    with pytest.raises(InvalidInput, match="'learned' does not fit regression"):
        race(
            make_task(),
            [Contender("Adam", Adam(), GRID), Contender("learned", other, (1.0,))],
            steps=10,
            seeds=(0, 1),
            evaluate_every=5,
        )


@pytest.mark.parametrize(
    ("label", "grid", "schedule", "message"),
    [
        ("Adam", (), "constant", "the grid is empty"),
        ("Adam", (-0.1, 0.1), "constant", "-0.1 is not a positive"),
        ("Adam", (float("nan"),), "constant", "nan is not a positive"),
        ("Adam", (0.1, 0.1), "constant", "does not rise"),
        ("Adam", (0.1,), "cosin", "did you mean 'cosine'"),
        (" ", (0.1,), "constant", "label: empty"),
    ],
)
def test_bad_contenders(label: str, grid: tuple[float, ...], schedule: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Contender(label, Adam(), grid, schedule)


def test_labels_are_unique(make_task: MakeTask) -> None:
    with pytest.raises(InvalidInput, match="'Adam' stands 2 times"):
        race(make_task(), [Contender("Adam", Adam(), GRID)] * 2, steps=10, seeds=(0, 1), evaluate_every=5)
