"""Convolutional networks on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from lopt.errors import InvalidInput
from tasks.arguments import check_positive, check_widths, pick
from tasks.image_family import ImageClassifier, ImageOptions
from tasks.modules.convolutional import cnn
from tasks.modules.parts import ACTIVATIONS, IMAGE_NORMS, INITIALISATIONS


class ImageCNN(ImageClassifier):
    """Convolutions with activations, the mean over pixels, a Linear layer.

    The default channels are those of the CNN that UNF (arXiv 2402.05232) trains on CIFAR-10 at 16x16; its strides and
    pooling are our choice.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        channels: outputs of every convolution.
        kernel: height and width of every convolution, odd; the image is padded, so that it keeps its size at stride 1.
        stride: of every convolution, or a list of one for each.
        activation: one of `tasks.modules.ACTIVATIONS`.
        norm: after every convolution: "none", "batch" (by the batch at hand, always), "layer" or "group".
        initialisation: of the weights, one of `tasks.modules.INITIALISATIONS`.
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.

    >>> import torch
    >>> task = ImageCNN("digits", channels=(4,)).sample(torch.Generator().manual_seed(0))
    >>> task.weight_space.shapes["0.weight"]
    (4, 1, 3, 3)
    """

    name: ClassVar[str] = "image_cnn"
    flat: ClassVar[bool] = False

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        channels: Sequence[int] = (16, 32),
        kernel: int = 3,
        stride: int | Sequence[int] = 1,
        activation: str = "relu",
        norm: str = "none",
        initialisation: str = "default",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, **images)
        self.convolutions = check_widths("channels", channels, least=1)
        check_positive("kernel", kernel)
        if kernel % 2 == 0:
            raise InvalidInput(f"kernel={kernel}: give an odd size, which can be padded evenly")
        pick("activation", activation, ACTIVATIONS)
        pick("norm", norm, IMAGE_NORMS)
        pick("initialisation", initialisation, INITIALISATIONS)
        self.strides = check_widths("stride", [stride] * len(channels) if isinstance(stride, int) else stride)
        if len(self.strides) != len(channels):
            raise InvalidInput(f"stride={stride}: give one number, or one for each of {len(channels)} convolutions")
        self.kernel = kernel
        self.activation, self.norm, self.initialisation = activation, norm, initialisation

    def build(self) -> nn.Module:
        channels = [self.channels, *self.convolutions]
        return cnn(
            channels, self.class_count, self.kernel, self.strides, self.activation, self.norm, self.initialisation
        )
