"""Residual networks on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from tasks.arguments import check_positive, check_widths, pick
from tasks.image_family import ImageClassifier, ImageOptions
from tasks.modules.convolutional import resnet
from tasks.modules.parts import IMAGE_NORMS


class ImageResNet(ImageClassifier):
    """A residual network (arXiv 1512.03385) for small images.

    Batch norms use the statistics of the batch at hand, and in evaluation those of the evaluation batch: nothing is
    remembered from batch to batch, so that the loss is a pure function.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        widths: channels of the stages; the image is halved between two stages.
        blocks: residual blocks a stage, of two 3x3 convolutions each.
        stem_stride: of the first convolution; 2 makes everything four times cheaper.
        norm: "batch", "layer", "group" or "none".
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    name: ClassVar[str] = "image_resnet"
    flat: ClassVar[bool] = False

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        widths: Sequence[int] = (8, 16),
        blocks: int = 1,
        stem_stride: int = 1,
        norm: str = "batch",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, **images)
        self.widths = check_widths("widths", widths, least=1)
        check_positive("blocks", blocks)
        check_positive("stem_stride", stem_stride)
        pick("norm", norm, IMAGE_NORMS)
        self.blocks, self.stem_stride, self.norm = blocks, stem_stride, norm

    def build(self) -> nn.Module:
        return resnet(self.channels, self.widths, self.blocks, self.class_count, self.norm, self.stem_stride)
