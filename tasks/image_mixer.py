"""MLP-Mixers on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from torch import nn

from tasks.arguments import check_divides, check_positive
from tasks.image_family import ImageClassifier, ImageOptions
from tasks.modules.mixer import mixer


class ImageMixer(ImageClassifier):
    """An MLP-Mixer (arXiv 2105.01601).

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        patch: height and width of a patch, a divisor of `size`.
        blocks, width: of the network.
        token_hidden, channel_hidden: widths inside the MLPs over patches and over features.
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    name: ClassVar[str] = "image_mixer"
    flat: ClassVar[bool] = False

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        patch: int = 4,
        blocks: int = 2,
        width: int = 32,
        token_hidden: int = 32,
        channel_hidden: int = 64,
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, **images)
        sizes = {"patch": patch, "blocks": blocks, "width": width}
        for argument, value in (sizes | {"token_hidden": token_hidden, "channel_hidden": channel_hidden}).items():
            check_positive(argument, value)
        check_divides("patch", patch, self.size)
        self.patch, self.blocks, self.width = patch, blocks, width
        self.token_hidden, self.channel_hidden = token_hidden, channel_hidden

    def build(self) -> nn.Module:
        images = self.channels, self.size, self.class_count
        return mixer(*images, self.patch, self.blocks, self.width, self.token_hidden, self.channel_hidden)
