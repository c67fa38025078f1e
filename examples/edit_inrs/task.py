r"""The task: change the weights of an INR so that the image it shows is edited.

    W' = W + γ · f(W),     loss = mean over pixels (image of W' - edited image)²

with f an equivariant network and γ learned, one number for each tensor. Errors are of values in [-1, 1], where they are
four times those of values in [0, 1].

Legend of shapes: N INRs, *S the shape of a parameter, C colours, H pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Trial, canonical, evaluate, make_editor, parameter_count
from examples.common.training import Batch, Epoch, apply
from examples.make_inrs import InrSet, render
from lopt.errors import unknown
from tasks.task import Split

SHOWN = 8  # test images whose edits are kept, for a picture
CONTRAST = 2.0  # how much further from their mean the pixels of an image move


def dilation(images: Tensor) -> Tensor:
    """Every pixel becomes the brightest of its 3 x 3 neighbours: strokes grow thicker. [N, C, H, H] -> the same."""
    return F.max_pool2d(images, 3, stride=1, padding=1)


def contrast(images: Tensor) -> Tensor:
    """Pixels move away from the mean of their image, and stay within [0, 1]. [N, C, H, H] -> the same."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * CONTRAST + mean).clamp(0, 1)


EDITS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"dilation": dilation, "contrast": contrast})
# Test error of NFN (arXiv 2302.14040) with its best layer; its contrast is another one than ours (see README.md).
PUBLISHED = {("dilation", "mnist"): 0.068, ("contrast", "cifar10"): 0.020}


def edit(name: str) -> Callable[[Tensor], Tensor]:
    """The entry of `EDITS`, or an InvalidInput with the near matches."""
    if name not in EDITS:
        raise unknown("edit", name, EDITS)
    return EDITS[name]


def batches(
    found: InrSet, images: Mapping[Split, Tensor], change: Callable[[Tensor], Tensor], signs: bool = True
) -> dict[str, Batch]:
    """The splits as weights and edited images.

    Args:
        signs: rid the weights of what a sine leaves open (see `canonical`); what an INR shows stays the same.

    Shapes:
        images: split -> [.., C, H, H] in [0, 1], those that the INRs were fitted to.
    """
    frequency = found.config["frequency"]
    return {
        split: Batch(canonical(inrs.tensors, frequency) if signs else inrs.tensors, change(images[split][inrs.index]))
        for split, inrs in found.splits.items()
    }


class Editing:
    """One model with one seed: an `Experiment`.

    Args:
        trial: with the splits of `batches`.
        frequency: ω of the INRs.
    """

    def __init__(self, trial: Trial, frequency: float) -> None:
        self.trial, self.frequency = trial, frequency
        torch.manual_seed(trial.seed)
        self.model = make_editor(trial.method, trial.space, trial.splits["train"].tensors, trial.size)

    def epochs(self) -> Iterator[Epoch]:
        return self.trial.train(self.model, lambda model, batch: -self._score(model, batch).mean(), self._score)

    def found(self) -> dict[str, Any]:
        """The test error, how many parameters the model has, and the first edited test images, 0 .. 255."""
        test = self.trial.splits["test"]
        images = apply(self.model, test.rows(slice(SHOWN)), self._images)
        return {
            "test": -evaluate(self.model, test, self._score),
            "parameters": parameter_count(self.model),
            "shown": (255 * images.clamp(0, 1)).round().int().tolist(),
        }

    def _images(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the edited INRs show."""
        return render(model(batch.tensors), batch.target.shape[-1], self.frequency)

    def _score(self, model: nn.Module, batch: Batch) -> Tensor:
        return -errors(self._images(model, batch), batch.target)


def errors(images: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each image, [N]; the images are in [0, 1], the errors as of values in [-1, 1]."""
    return 4 * (images - targets).square().mean((1, 2, 3))
