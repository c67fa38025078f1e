"""A task small enough to be raced in milliseconds, and results with curves of our choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.contenders import Contender
from benchmark.race import Entry, Result
from benchmark.runs import Curves
from benchmark.tuning import Tuning
from lopt.rules import SGDM
from lopt.weight_space import WeightSpace
from tasks.task import Batch, Split, Task


class Regression(Task):
    """Least squares on noisy lines: 3 weights and a bias, 32 points a split."""

    def __init__(self, test_shift: float = 0.0) -> None:
        self.name = "regression"
        self.module = nn.Linear(3, 1)
        self.weight_space = WeightSpace.linear_stack(dict(self.module.named_parameters()))
        generator = torch.Generator().manual_seed(0)
        splits: tuple[Split, ...] = ("train", "validation", "test")
        self.inputs = {split: torch.randn(32, 3, generator=generator) for split in splits}
        slope = torch.tensor([1.0, -2.0, 0.5])
        self.targets = {
            split: x @ slope + 0.1 * torch.randn(32, generator=generator) for split, x in self.inputs.items()
        }
        self.targets["test"] = self.targets["test"] + test_shift

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.randn(1, 3, generator=generator), "bias": torch.zeros(1)}

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        inputs, targets = batch
        return ((inputs @ params["weight"][0] + params["bias"] - targets) ** 2).mean()

    def draw(self, split: Split, generator: torch.Generator) -> Tensor:
        return torch.randint(32, (4,), generator=generator)

    def gather(self, split: Split, drawn: Tensor) -> Batch:
        return self.inputs[split][drawn], self.targets[split][drawn]

    def evaluation_batch(self, split: Split) -> Batch:
        return self.inputs[split], self.targets[split]


@pytest.fixture
def make_task() -> Callable[..., Task]:
    return Regression


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """A race that ended with given test losses: label -> final loss of each seed."""

    def make(finals: Mapping[str, Sequence[float]], target: str = "Adam", on_edge: bool = False) -> Result:
        steps = (0, 10, 20)
        entries = []
        for label, final in finals.items():
            test = np.stack([np.linspace(2.0, 1.0, 2).tolist() + [last] for last in final])
            rates = (0.1, 0.2, 0.4)
            settings = tuple((("lr", rate),) for rate in rates)
            tuning = Tuning(settings, (1.0, 0.5, 0.7), (0, 0, 0), 0 if on_edge else 1, 0)
            contender = Contender(label, SGDM(), rates)
            entries.append(Entry(contender, tuning, Curves(test, test, test)))
        return Result("regression", steps, tuple(range(len(next(iter(finals.values()))))), target, tuple(entries))

    return make
