"""The task: from the weights of an INR to the class of the image that it fits; and the ways to go about it.

Legend of shapes: N INRs, *S the shape of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import (
    Architecture,
    Recipe,
    align,
    canonical,
    evaluate,
    make_model,
    permute_each,
    random_permutations,
    train,
)
from examples.common.models import NAMES
from examples.common.training import Batch, Epoch
from examples.make_inrs import InrSet
from lopt.errors import unknown
from lopt.weight_space import WeightSpace

AUGMENTED, ALIGNED = "mlp_augmented", "mlp_aligned"
METHODS = (*NAMES, AUGMENTED, ALIGNED)
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
# Test accuracy, %; DWSNets (arXiv 2301.12780) and NFN (2302.14040, its best layer).
PUBLISHED = {
    "mnist": {"DWSNets": 85.71, "NFN": 92.9},
    "fashion_mnist": {"DWSNets": 67.06, "NFN": 75.6},
    "cifar10": {"DWSNets": 34.45, "NFN": 46.6},
}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.tensors), batch.target)


def accuracy(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch.tensors).argmax(1) == batch.target).float()


def batches(found: InrSet, signs: bool = True) -> dict[str, Batch]:
    """The splits as weights and labels; `signs` rids the weights of what a sine leaves open (see `canonical`)."""
    frequency = found.config["frequency"]
    return {
        split: Batch(canonical(inrs.tensors, frequency) if signs else inrs.tensors, inrs.label)
        for split, inrs in found.splits.items()
    }


def aligned(space: WeightSpace, splits: Mapping[str, Batch]) -> dict[str, Batch]:
    """All INRs with their neurons in the order that is closest to the first train INR."""
    reference = {name: x[0] for name, x in splits["train"].tensors.items()}
    return {split: Batch(align(space, batch.tensors, reference), batch.target) for split, batch in splits.items()}


def check_method(method: str) -> None:
    """Raises InvalidInput, with the near matches, unless there is such a method."""
    if method not in METHODS:
        raise unknown("model", method, METHODS)


class Classification:
    """One method with one seed: an `Experiment`.

    Args:
        splits: those of `batches`; those of `aligned` for `mlp_aligned`.
        classes: how many there are.
    """

    def __init__(
        self,
        method: str,
        space: WeightSpace,
        splits: Mapping[str, Batch],
        classes: int,
        size: Architecture,
        recipe: Recipe,
        seed: int,
    ) -> None:
        check_method(method)
        self.splits, self.recipe, self.seed = splits, recipe, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = partial(_shuffled, space, self.generator) if method == AUGMENTED else None
        torch.manual_seed(seed)
        name = "mlp" if method in (AUGMENTED, ALIGNED) else method
        self.model = make_model(name, space, splits["train"].tensors, classes, size)

    def epochs(self) -> Iterator[Epoch]:
        torch.manual_seed(self.seed)
        train_split, validation = self.splits["train"], self.splits["validation"]
        return train(
            self.model, train_split, validation, loss, accuracy, self.recipe, self.generator, augment=self.augment
        )

    def found(self) -> dict[str, float]:
        """The test accuracy, and how many parameters the model has."""
        count = sum(p.numel() for p in self.model.parameters())
        return {"test": evaluate(self.model, self.splits["test"], accuracy), "parameters": count}


def _shuffled(space: WeightSpace, generator: torch.Generator, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    count = len(next(iter(tensors.values())))
    return permute_each(space, tensors, random_permutations(space, count, generator))
