"""Races on a user's own task: from the command line by import path, from Python on a module, a loss and a loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import benchmark
from benchmark.command_line import prepare
from benchmark.sources import Own, fingerprint
from lopt.errors import InvalidInput
from lopt.rules import PerParameter
from tasks.own_data import OwnData
from tests.benchmark import own_tasks

HERE = "tests.benchmark.own_tasks"


def loader(rows: int = 60) -> DataLoader:
    inputs = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8)


def test_five_lines_of_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    contenders = ["adam", "sgdm", PerParameter()]
    outcome = benchmark.race(model, nn.functional.mse_loss, loader(), contenders=contenders, steps=30, seeds=2)
    assert "Adam" in str(outcome)
    assert "PerParameter" in outcome.table(width=100)
    assert outcome.plot(tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    paths = outcome.save(tmp_path / "out")
    assert json.loads(paths[0].read_text())["reference"] == "Adam"
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contenders": ["adma", "sgdm"]}, "did you mean 'adam'"),
        ({"loader": []}, "gives no batch"),
        ({"seeds": 1}, "no standard error"),
        ({"loader": loader(4)}, "at least 5"),
    ],
)
def test_bad_input_from_python(change: dict[str, Any], message: str) -> None:
    arguments = {"loader": loader(), "steps": 20, "seeds": 2} | change
    with pytest.raises(InvalidInput, match=message):
        benchmark.race(nn.Linear(3, 1), nn.functional.mse_loss, arguments.pop("loader"), **arguments)


def test_what_cannot_be_raced_on() -> None:
    with pytest.raises(InvalidInput, match=r"neither a torch.nn.Module .* nor a tasks.Task"):
        benchmark.race("my model")


@pytest.mark.parametrize("name", ["family", "task"])
def test_an_import_path_gives_a_task(name: str) -> None:
    own = Own(f"{HERE}.{name}", 0)
    assert own.load().name == "own_data"
    assert own.load() is own.load()
    assert own.key["content"] == fingerprint(own_tasks.task())


def test_other_data_are_another_task() -> None:
    task = own_tasks.task()
    before = fingerprint(task)
    task.targets["test"][0] += 1  # type: ignore[attr-defined]
    assert fingerprint(task) != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_package.MyTask", "cannot be imported"),
        (f"{HERE}.famly", "did you mean 'family'"),
        (f"{HERE}.not_callable", "is a int; name a class"),
        (f"{HERE}.nothing", "gives a int, which is neither"),
        ("MyTask", "no import path"),
    ],
)
def test_bad_paths(path: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Own(path, 0).load()


def test_the_command_line() -> None:
    assert prepare(["suite=demo", "seed=1"]) == ["suite=demo", "seed=1"]
    assert prepare(["task=a.B", "suite=papers"]) == ["task=a.B", "suite=papers"]
    assert prepare(["task=papers/cifar10_mlp"]) == ["suite=own", "family@suite.family=papers/cifar10_mlp"]
    with pytest.raises(InvalidInput, match="did you mean 'papers/cifar10_mlp'"):
        prepare(["task=papers/cifar_mlp"])
    with pytest.raises(InvalidInput, match="leave suite= out"):
        prepare(["task=image_mlp", "suite=demo"])


def test_another_loss_gradient_or_module_is_another_task() -> None:
    def seen(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> str:
        inputs = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        family = OwnData(module, inputs, inputs.sum(1, keepdim=True), loss, batch_size=8)
        return fingerprint(family.sample(torch.Generator()))

    def detached(outputs: Tensor, targets: Tensor) -> Tensor:  # the same value, half the gradient
        return (nn.functional.mse_loss(outputs, targets) + nn.functional.mse_loss(outputs, targets).detach()) / 2

    def net(activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 1))

    mse = nn.functional.mse_loss
    hashes = [seen(net(nn.Tanh()), loss) for loss in (mse, nn.functional.l1_loss, detached)]
    hashes += [seen(net(activation), mse) for activation in (nn.ReLU(), nn.LeakyReLU(0.0))]  # of the same values
    assert len(set(hashes)) == len(hashes)
    assert seen(net(nn.Tanh()), mse) == hashes[0]


def test_a_task_that_cannot_compute_its_loss_says_so() -> None:
    task = own_tasks.task()
    task.loss = lambda params, batch: batch[0].sum()  # type: ignore[method-assign]
    with pytest.raises(InvalidInput, match="task: own_data cannot compute its loss and the gradient"):
        fingerprint(task)


def test_a_race_leaves_model_and_rule_as_they_were() -> None:
    torch.manual_seed(0)
    model, rule = nn.Linear(3, 1).double(), PerParameter()
    table = TensorDataset(*(part.double() for part in loader().dataset[:]))
    before = {name: value.clone() for name, value in (model.state_dict() | rule.state_dict()).items()}
    contenders = ["adam", rule]
    batches = DataLoader(table, batch_size=8)
    benchmark.race(model, nn.functional.mse_loss, batches, contenders=contenders, steps=10, seeds=2)
    for name, value in (model.state_dict() | rule.state_dict()).items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_a_family_of_a_folder_of_ones_own_is_a_task(tmp_path: Path) -> None:
    (tmp_path / "family" / "mine").mkdir(parents=True)
    (tmp_path / "family" / "mine" / "spirals.yaml").touch()
    for words in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        came = prepare([*words, "task=mine/spirals", "seed=1"])  # all on one side of the flag, as Hydra wants them
        assert came == [*words, "suite=own", "family@suite.family=mine/spirals", "seed=1"]
        assert prepare([*words, "task=image_mlp"])[-1] == "family@suite.family=image_mlp"  # ours stay
        with pytest.raises(InvalidInput, match="did you mean 'mine/spirals'"):
            prepare([*words, "task=mine/spiral"])
