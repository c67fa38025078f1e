"""Autoencoders on images: of Linear layers, and convolutional."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tasks.arguments import check_divides, check_widths, pick
from tasks.image_family import ImageFamily, ImageOptions
from tasks.modules.autoencoder import conv_autoencoder, mlp_autoencoder
from tasks.modules.parts import ACTIVATIONS, INITIALISATIONS, NORMS
from tasks.supervised import Supervised
from tasks.task import Split, Task

# (outputs, pixels) -> (): the mean over images and pixels. bce takes the outputs as logits of pixels in [0, 1].
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "bce": F.binary_cross_entropy_with_logits,
}


class Reconstruction(ImageFamily):
    """A family whose networks give images back; see `Autoencoder`."""

    def __init__(self, data: str | Sequence[str], loss: str, images: ImageOptions) -> None:
        super().__init__(data, **images)
        pick("loss", loss, LOSSES)
        if loss == "bce" and self.standardise:
            raise InvalidInput(
                "loss='bce', standardise=True: bce wants pixels in [0, 1]. Say standardise=False or 'mse'"
            )
        self.loss = loss

    def make_task(
        self, name: str, module: nn.Module, space: WeightSpace, inputs: dict[Split, Tensor], rows: dict[Split, range]
    ) -> Task:
        evaluation, loss = self.evaluation(rows), LOSSES[self.loss]
        return Supervised(name, module, space, inputs, inputs, rows, self.batch_size, evaluation, loss)


class Autoencoder(Reconstruction):
    """An autoencoder of Linear layers.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        hidden: widths from the images to the code; the decoder takes them back.
        activation, norm, initialisation: as in `ImageMLP`.
        loss: "mse", or "bce" for pixels in [0, 1] (`standardise=False`); a mean over images and pixels.
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    name: ClassVar[str] = "autoencoder"
    flat: ClassVar[bool] = True

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        hidden: Sequence[int] = (32, 16),
        activation: str = "relu",
        norm: str = "none",
        initialisation: str = "default",
        loss: str = "mse",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, loss, images)
        self.hidden = check_widths("hidden", hidden, least=1)
        pick("activation", activation, ACTIVATIONS)
        pick("norm", norm, NORMS)
        pick("initialisation", initialisation, INITIALISATIONS)
        self.activation, self.norm, self.initialisation = activation, norm, initialisation

    def build(self) -> nn.Module:
        pixels = self.channels * self.size**2
        return mlp_autoencoder(pixels, self.hidden, self.activation, self.norm, self.initialisation)


class ConvAutoencoder(Reconstruction):
    """An autoencoder of convolutions that halve the image and transposed convolutions that double it again.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        channels: outputs of every convolution of the encoder; the last are the code's. `size` must be a multiple of 2
            to the power of their number.
        activation: one of `tasks.modules.ACTIVATIONS`.
        loss: "mse", or "bce" for pixels in [0, 1] (`standardise=False`); a mean over images and pixels.
        images: `size`, `batch_size`, `standardise`, `classes`, `evaluation_size`, `device`, `dtype`; see `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    name: ClassVar[str] = "conv_autoencoder"
    flat: ClassVar[bool] = False

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        channels: Sequence[int] = (8, 4),
        activation: str = "relu",
        loss: str = "mse",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, loss, images)
        self.convolutions = check_widths("channels", channels, least=1)
        check_divides("size, halved by every convolution", 2 ** len(self.convolutions), self.size)
        self.activation = activation
        pick("activation", activation, ACTIVATIONS)

    def build(self) -> nn.Module:
        return conv_autoencoder([self.channels, *self.convolutions], self.activation)
