"""Which frequency has a wave, from the weights of its network; with how many networks to learn from.

Legend of shapes: N networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from examples.common import Architecture, Recipe, evaluate, make_model, train
from examples.common.training import Batch, Epoch
from examples.sine_waves.methods import augmentation, model_name, prepared
from examples.sine_waves.waves import WaveSet
from lopt.weight_space import WeightSpace


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
        splits: those of `batches`.
    """

    def __init__(
        self,
        method: str,
        space: WeightSpace,
        splits: Mapping[str, Batch],
        size: Architecture,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        std, mean = torch.std_mean(splits["train"].target)
        self.std = float(std)
        seen = prepared(method, space, splits)
        self.splits = {split: Batch(some.tensors, (some.target - mean) / std) for split, some in seen.items()}
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = augmentation(method, space, self.generator)
        torch.manual_seed(seed)
        self.model = make_model(model_name(method), space, self.splits["train"].tensors, 1, size)

    def epochs(self) -> Iterator[Epoch]:
        torch.manual_seed(self.seed)
        train_split, validation = self.splits["train"], self.splits["validation"]
        return train(
            self.model, train_split, validation, loss, closeness, self.recipe, self.generator, augment=self.augment
        )

    def found(self) -> dict[str, float]:
        """The mean squared error on the test split, and how many parameters the model has."""
        error = -evaluate(self.model, self.splits["test"], closeness) * self.std**2
        return {"test": error, "parameters": sum(p.numel() for p in self.model.parameters())}
