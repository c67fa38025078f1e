"""The models for sine waves: DWS and what it is compared with; the same for all three questions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from examples.common import align, permute_each, random_permutations
from examples.common.training import Augment, Batch
from lopt.errors import unknown
from lopt.weight_space import WeightSpace

AUGMENTED, ALIGNED = "mlp_augmented", "mlp_aligned"
# method -> what a table calls it
TITLES = {
    "dws": "DWS",
    "hnp": "HNP",
    "np": "NP",
    "mlp": "MLP",
    AUGMENTED: "MLP, permutation augmentation",
    ALIGNED: "MLP, after alignment",
}
METHODS = tuple(TITLES)


def check_methods(methods: list[str], known: tuple[str, ...] = METHODS) -> None:
    """Raises InvalidInput, with the near matches, unless there are such methods."""
    for method in methods:
        if method not in known:
            raise unknown("model", method, known)


def model_name(method: str) -> str:
    """What `examples.common.make_model` calls the network of a method."""
    return "mlp" if method in (AUGMENTED, ALIGNED) else method


def prepared(method: str, space: WeightSpace, splits: Mapping[str, Batch]) -> dict[str, Batch]:
    """The splits as a method sees them: aligned to the first train network for `mlp_aligned`, else as they are."""
    if method != ALIGNED:
        return dict(splits)
    reference = {name: x[0] for name, x in splits["train"].tensors.items()}
    return {split: Batch(align(space, batch.tensors, reference), batch.target) for split, batch in splits.items()}


def augmentation(method: str, space: WeightSpace, generator: torch.Generator) -> Augment | None:
    """What happens to the networks of a train batch first: a random order of neurons for `mlp_augmented`."""
    return partial(_shuffled, space, generator) if method == AUGMENTED else None


def _shuffled(space: WeightSpace, generator: torch.Generator, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    count = len(next(iter(tensors.values())))
    return permute_each(space, tensors, random_permutations(space, count, generator))
