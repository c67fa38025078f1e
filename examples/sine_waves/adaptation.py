r"""A network that adapts classifiers to a new domain: from weights v to weights v + Δv, in one forward pass.

It is trained on some classifiers and the train images of the target domain; the test is on classifiers and images that
it never saw.

Legend of shapes: B classifiers, M images of each, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Trial, evaluate, make_editor, methods, parameter_count
from examples.common.methods import ALIGNED, AUGMENTED, model_name
from examples.common.training import Batch, Epoch
from examples.sine_waves.classifiers import Corruption, Images, accuracies, classify
from tasks.task import Split

UNCHANGED = "none"  # the method that leaves the classifiers as they are
ADAPTERS = (UNCHANGED, "dws", "np", "mlp", AUGMENTED, ALIGNED)
TITLES = {**methods.TITLES, UNCHANGED: "no adaptation"}
TESTED = 200  # images that a classifier is tested on


class Unchanged(nn.Module):
    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors


class Adaptation:
    """One method with one seed: an `Experiment`.

    Args:
        images: of both domains, before they are corrupted.
        shown: M, images of a classifier in a step.
    """

    def __init__(self, trial: Trial, images: Mapping[Split, Images], corruption: Corruption, shown: int) -> None:
        self.trial, self.images, self.corruption, self.shown = trial, images, corruption, shown
        torch.manual_seed(trial.seed)
        if trial.method == UNCHANGED:
            self.model: nn.Module = Unchanged()
        else:
            name = "hnp" if trial.method == "dws" else model_name(trial.method)  # the same maps
            self.model = make_editor(name, trial.space, trial.splits["train"].tensors, trial.size)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of the adapted classifiers on train images of the target domain."""
        generator = self.trial.generator
        images, which = self.images["train"].draw(batch.target, self.shown, generator)
        said = classify(model(batch.tensors), self.corruption(images, generator))
        return F.cross_entropy(said.flatten(0, 1), which.flatten())

    def accuracy(self, split: Split, model: nn.Module, batch: Batch) -> Tensor:
        """That of each adapted classifier on images of a split, the same ones every time: [B]."""
        generator = torch.Generator().manual_seed(0)
        images, which = self.images[split].draw(batch.target, TESTED, generator)
        return accuracies(model(batch.tensors), self.corruption(images, generator), which)

    def epochs(self) -> Iterator[Epoch]:
        if self.trial.method == UNCHANGED:
            return iter(())
        return self.trial.train(self.model, self.loss, partial(self.accuracy, "validation"))

    def found(self) -> dict[str, float]:
        """The accuracy of the adapted test classifiers on test images of the target domain, and the parameters."""
        right = evaluate(self.model, self.trial.splits["test"], partial(self.accuracy, "test"))
        return {"test": right, "parameters": parameter_count(self.model)}
