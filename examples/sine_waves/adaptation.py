r"""A network that adapts classifiers to a new domain: from weights v to weights v + Δv, in one forward pass.

It is trained on some classifiers and the train images of the target domain; the test is on classifiers and images that
it never saw.

Legend of shapes: B classifiers, M images of each, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Architecture, Recipe, evaluate, make_editor, train
from examples.common.training import Batch, Epoch
from examples.sine_waves.classifiers import ClassifierSet, Corruption, accuracies, classify
from examples.sine_waves.methods import augmentation, model_name, prepared
from tasks.task import Split

UNCHANGED = "none"  # the method that leaves the classifiers as they are
TITLES = {
    UNCHANGED: "no adaptation",
    "dws": "DWS",
    "np": "NP",
    "mlp": "MLP",
    "mlp_augmented": "MLP, permutation augmentation",
    "mlp_aligned": "MLP, after alignment",
}
ADAPTERS = tuple(TITLES)
TESTED = 200  # images that a classifier is tested on


class Unchanged(nn.Module):
    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors


class Adaptation:
    """One method with one seed: an `Experiment`.

    Args:
        shown: M, images of a classifier in a step.
    """

    def __init__(
        self,
        method: str,
        found: ClassifierSet,
        corruption: Corruption,
        shown: int,
        size: Architecture,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.method, self.images, self.corruption, self.shown = method, found.images, corruption, shown
        self.recipe, self.seed = recipe, seed
        self.splits = prepared(method, found.space, {str(split): batch for split, batch in found.splits.items()})
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = augmentation(method, found.space, self.generator)
        torch.manual_seed(seed)
        if method == UNCHANGED:
            self.model: nn.Module = Unchanged()
        else:
            name = "hnp" if method == "dws" else model_name(method)  # the same maps
            self.model = make_editor(name, found.space, self.splits["train"].tensors, size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of the adapted classifiers on train images of the target domain."""
        images, which = self.images["train"].draw(batch.target, self.shown, self.generator)
        said = classify(model(batch.tensors), self.corruption(images, self.generator))
        return F.cross_entropy(said.flatten(0, 1), which.flatten())

    def accuracy(self, split: Split, model: nn.Module, batch: Batch) -> Tensor:
        """That of each adapted classifier on images of a split, the same ones every time: [B]."""
        generator = torch.Generator().manual_seed(0)
        images, which = self.images[split].draw(batch.target, TESTED, generator)
        return accuracies(model(batch.tensors), self.corruption(images, generator), which)

    def epochs(self) -> Iterator[Epoch]:
        if self.method == UNCHANGED:
            return
        torch.manual_seed(self.seed)
        yield from train(
            self.model,
            self.splits["train"],
            self.splits["validation"],
            self.loss,
            lambda model, batch: self.accuracy("validation", model, batch),
            self.recipe,
            self.generator,
            augment=self.augment,
        )

    def found(self) -> dict[str, float]:
        """The accuracy of the adapted test classifiers on test images of the target domain, and the parameters."""
        right = evaluate(self.model, self.splits["test"], lambda model, batch: self.accuracy("test", model, batch))
        return {"test": right, "parameters": sum(p.numel() for p in self.model.parameters())}
