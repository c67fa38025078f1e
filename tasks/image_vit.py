"""Vision transformers on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from tasks.arguments import check_divides, check_positive, pick
from tasks.image_family import ImageClassifier, ImageOptions
from tasks.modules.attention import MLPS, VisionTransformer
from tasks.modules.parts import TOKEN_NORMS


class ImageViT(ImageClassifier):
    """A vision transformer (arXiv 2010.11929) with learned positions, pre-norm blocks and the mean over patches.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        patch: height and width of a patch, a divisor of `size`.
        blocks, width, heads: of the transformer; `heads` divides `width`.
        hidden: width inside the MLP of a block; None: four times `width`.
        norm: "layer" or "rms".
        mlp: "gelu" or "swiglu".
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    name: ClassVar[str] = "image_vit"
    flat: ClassVar[bool] = False

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        patch: int = 4,
        blocks: int = 2,
        width: int = 32,
        heads: int = 4,
        hidden: int | None = None,
        norm: str = "layer",
        mlp: str = "gelu",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, **images)
        self.hidden = 4 * width if hidden is None else hidden
        for argument, value in (("patch", patch), ("blocks", blocks), ("width", width), ("heads", heads)):
            check_positive(argument, value)
        check_positive("hidden", self.hidden)
        check_divides("patch", patch, self.size)
        check_divides("heads", heads, width)
        pick("norm", norm, TOKEN_NORMS)
        pick("mlp", mlp, MLPS)
        self.patch, self.blocks, self.width, self.heads, self.norm, self.mlp = patch, blocks, width, heads, norm, mlp

    def build(self) -> nn.Module:
        images = self.channels, self.size, self.class_count
        return VisionTransformer(
            *images, self.patch, self.blocks, self.width, self.heads, self.hidden, self.norm, self.mlp
        )
