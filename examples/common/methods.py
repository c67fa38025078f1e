"""Ways to learn from networks, by name: the models, and an MLP on raw weights that is helped in two ways to deal with
the order of neurons. A `Trial` is one of them with one seed; `starter` makes experiments of trials for `run_all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from examples.common.models import Architecture, make_model
from examples.common.permutations import align, permute_each, random_permutations
from examples.common.training import Batch, Epoch, Loss, Recipe, Score, Tensors, train
from lopt.weight_space import WeightSpace

AUGMENTED, ALIGNED = "mlp_augmented", "mlp_aligned"
# method -> what a table calls it
TITLES = {
    "dws": "DWS",
    "np": "NP",
    "hnp": "HNP",
    "nft": "NFT",
    "mlp": "MLP",
    AUGMENTED: "MLP, permutation augmentation",
    ALIGNED: "MLP, after alignment",
}

Made = TypeVar("Made")
Augmentation = Callable[[Tensors, torch.Generator], Tensors]


@dataclass(eq=False)
class Trial:
    """One method with one seed, and what it learns from.

    Args:
        splits: as the method sees them: `prepared`.
        augment: changes the networks of every train batch, before all else.
    """

    method: str
    seed: int
    space: WeightSpace
    splits: Mapping[str, Batch]
    size: Architecture
    recipe: Recipe
    augment: Augmentation | None = None
    generator: torch.Generator = field(init=False)  # draws all that is not drawn inside of the model

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def make_model(self, outputs: int) -> nn.Module:
        """The method's model from weights [B, *S] to [B, outputs]."""
        torch.manual_seed(self.seed)
        name = model_name(self.method)
        return make_model(name, self.space, self.splits["train"].tensors, outputs, self.size)

    def train(self, model: nn.Module, loss: Loss, score: Score) -> Iterator[Epoch]:
        """Trains a model on the train split; see `examples.common.train`."""
        torch.manual_seed(self.seed)
        examples, validation = self.splits["train"], self.splits["validation"]
        return train(model, examples, validation, loss, score, self.recipe, self.generator, self._augmented)

    def _augmented(self, tensors: Tensors) -> Tensors:
        tensors = tensors if self.augment is None else self.augment(tensors, self.generator)
        return _shuffled(self.space, tensors, self.generator) if self.method == AUGMENTED else tensors


def starter(
    experiment: Callable[[Trial], Made],
    space: WeightSpace,
    splits: Mapping[str, Batch],
    size: Architecture,
    recipe: Recipe,
    augment: Augmentation | None = None,
) -> Callable[[str, int], Made]:
    """From a method and a seed to an experiment, for `run_all`. Networks are aligned once, when a method wants it."""
    seen = cache(partial(prepared, space=space, splits=splits))

    def start(method: str, seed: int) -> Made:
        return experiment(Trial(method, seed, space, seen(method), size, recipe, augment))

    return start


def model_name(method: str) -> str:
    """What `examples.common.make_model` calls the network of a method."""
    return "mlp" if method in (AUGMENTED, ALIGNED) else method


def prepared(method: str, space: WeightSpace, splits: Mapping[str, Batch]) -> dict[str, Batch]:
    """The splits as a method sees them: aligned to the first train network for `mlp_aligned`, else as they are."""
    if method != ALIGNED:
        return dict(splits)
    reference = {name: x[0] for name, x in splits["train"].tensors.items()}
    return {split: Batch(align(space, batch.tensors, reference), batch.target) for split, batch in splits.items()}


def _shuffled(space: WeightSpace, tensors: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
    count = len(next(iter(tensors.values())))
    return permute_each(space, tensors, random_permutations(space, count, generator))
