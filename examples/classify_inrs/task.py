"""The task: from the weights of an INR to the class of the image that it fits; and the ways to go about it.

Legend of shapes: N INRs, *S the shape of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Trial, canonical, evaluate, parameter_count
from examples.common.methods import TITLES, Augmentation
from examples.common.movements import Movements
from examples.common.runs import check_method
from examples.common.training import Batch, Epoch, Tensors
from examples.make_inrs import InrSet

METHODS = tuple(TITLES)
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
    return {split: Batch(_seen(inrs.tensors, found, signs), inrs.label) for split, inrs in found.splits.items()}


def augmentation(movements: Movements, found: InrSet, signs: bool = True) -> Augmentation:
    """Moves the images of a train batch, and makes signs and phases canonical again as `batches` does.

    Neurons keep their order, which alignment has given them for `mlp_aligned`.
    """

    def moved(tensors: Tensors, generator: torch.Generator) -> Tensors:
        return _seen(movements(tensors, generator), found, signs)

    return moved


def _seen(tensors: Tensors, found: InrSet, signs: bool) -> Tensors:
    return canonical(tensors, found.config["frequency"]) if signs else tensors


class Classification:
    """One method with one seed: an `Experiment`.

    Args:
        trial: with the splits of `batches`.
        classes: how many there are.
    """

    def __init__(self, trial: Trial, classes: int) -> None:
        check_method(trial.method, METHODS)
        self.trial, self.model = trial, trial.make_model(classes)

    def epochs(self) -> Iterator[Epoch]:
        return self.trial.train(self.model, loss, accuracy)

    def found(self) -> dict[str, float]:
        """The test accuracy, and how many parameters the model has."""
        test = evaluate(self.model, self.trial.splits["test"], accuracy)
        return {"test": test, "parameters": parameter_count(self.model)}
