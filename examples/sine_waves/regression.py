"""Which frequency has a wave, from the weights of its network; with how many networks to learn from.

Legend of shapes: N networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from examples.common import Trial, evaluate, parameter_count
from examples.common.training import Batch, Epoch
from examples.sine_waves.waves import WaveSet


def batches(waves: WaveSet, count: int) -> dict[str, Batch]:
    """Weights and frequencies [N], with the first `count` train networks."""
    found = {split: Batch(some.tensors, some.wave[:, 1]) for split, some in waves.splits.items()}
    return found | {"train": found["train"].rows(slice(count))}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return -closeness(model, batch).mean()


def closeness(model: nn.Module, batch: Batch) -> Tensor:
    """Minus the squared error of each network: [N]."""
    return -(model(batch.tensors).squeeze(1) - batch.target).square()


class Regression:
    """One method with one seed: an `Experiment`. The test error is in squared units of the frequency.

    Args:
        trial: with the splits of `batches`.
    """

    def __init__(self, trial: Trial) -> None:
        std, mean = torch.std_mean(trial.splits["train"].target)
        self.std = float(std)
        splits = {split: Batch(some.tensors, (some.target - mean) / std) for split, some in trial.splits.items()}
        self.trial = replace(trial, splits=splits)
        self.model = self.trial.make_model(1)

    def epochs(self) -> Iterator[Epoch]:
        return self.trial.train(self.model, loss, closeness)

    def found(self) -> dict[str, float]:
        """The mean squared error on the test split, and how many parameters the model has."""
        error = -evaluate(self.model, self.trial.splits["test"], closeness) * self.std**2
        return {"test": error, "parameters": parameter_count(self.model)}
