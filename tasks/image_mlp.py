"""Multilayer perceptrons on small images: the family that learned optimizers are most often compared on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from tasks.arguments import check_widths, pick
from tasks.image_family import ImageClassifier, ImageOptions
from tasks.modules.mlp import mlp
from tasks.modules.parts import ACTIVATIONS, INITIALISATIONS, NORMS


class ImageMLP(ImageClassifier):
    """An MLP that classifies images.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        hidden: widths of the hidden layers; none for a linear classifier.
        activation: one of `tasks.modules.ACTIVATIONS`.
        norm: after every hidden layer, before its activation: "none", "batch" (by the batch at hand, always), "layer",
            "rms" or "group".
        initialisation: of the weights, one of `tasks.modules.INITIALISATIONS`.
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.

    >>> import torch
    >>> task = ImageMLP("digits", hidden=(16,)).sample(torch.Generator().manual_seed(0))
    >>> task.weight_space
    WeightSpace({'0.weight': 'g0:16, in=64', '0.bias': 'g0:16', '2.weight': 'out=10, g0:16', '2.bias': 'out=10'})
    """

    name: ClassVar[str] = "image_mlp"
    flat: ClassVar[bool] = True

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        hidden: Sequence[int] = (32,),
        activation: str = "relu",
        norm: str = "none",
        initialisation: str = "default",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, **images)
        self.hidden = check_widths("hidden", hidden)
        pick("activation", activation, ACTIVATIONS)
        pick("norm", norm, NORMS)
        pick("initialisation", initialisation, INITIALISATIONS)
        self.activation, self.norm, self.initialisation = activation, norm, initialisation

    def build(self) -> nn.Module:
        widths = [self.channels * self.size**2, *self.hidden, self.class_count]
        return mlp(widths, self.activation, self.norm, self.initialisation)
