"""Variational autoencoders on images.

Legend of shapes: B images of a batch, F pixels, Z latent variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tasks.arguments import check_positive, check_widths, pick
from tasks.image_family import ImageFamily, ImageOptions
from tasks.modules.autoencoder import VAE
from tasks.modules.parts import ACTIVATIONS
from tasks.supervised import Supervised
from tasks.task import Sizes, Split, Task

_EVALUATION_SEED = 1312


class VariationalAutoencoder(ImageFamily):
    r"""A variational autoencoder (arXiv 1312.6114) of Linear layers, on pixels in [0, 1].

    $$ L = \frac{1}{F}\left( \mathrm{BCE}(D(\mu + \sigma \epsilon), x) + \tfrac12 \textstyle\sum_j
       (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2) \right), \quad (\mu, \log \sigma^2) = E(x), \quad
       \epsilon \sim \mathcal N(0, I) $$

    the mean over a batch of the negative evidence lower bound (equation 10, one draw), in nats a pixel. The noise ε is
    part of what a task draws, so the loss is pure; the evaluation batch holds a fixed draw.

    Args:
        data: the name of a data set, or several names; `tasks.DATA_SETS` lists them.
        hidden: widths of the encoder's hidden layers; the decoder takes them back.
        latent: Z.
        activation: one of `tasks.modules.ACTIVATIONS`.
        images: `size`, `batch_size`, `standardise` (False here), `classes`, `evaluation_size`, `device`, `dtype`; see
            `ImageFamily`.

    Raises:
        InvalidInput: an argument or LOPT_DATA cannot be used; or, when the data are loaded, they cannot be read.
    """

    name: ClassVar[str] = "variational_autoencoder"
    flat: ClassVar[bool] = True

    def __init__(
        self,
        data: str | Sequence[str] = "digits",
        hidden: Sequence[int] = (32,),
        latent: int = 8,
        activation: str = "relu",
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(data, **{"standardise": False, **images})
        if self.standardise:
            raise InvalidInput("standardise=True: the likelihood wants pixels in [0, 1]. Leave it out")
        self.hidden, self.latent, self.activation = check_widths("hidden", hidden), latent, activation
        check_positive("latent", latent)
        pick("activation", activation, ACTIVATIONS)

    def build(self) -> nn.Module:
        return VAE(self.channels * self.size**2, self.hidden, self.latent, self.activation)

    def example_inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        return images, images.new_zeros(len(images), self.latent)

    def make_task(
        self, name: str, module: nn.Module, space: WeightSpace, inputs: dict[Split, Tensor], rows: dict[Split, range]
    ) -> Task:
        evaluation = self.evaluation(rows)
        images = Supervised(name, module, space, inputs, inputs, rows, self.batch_size, evaluation)
        return VariationalTask(images, self.latent)


class NoisyImages(NamedTuple):
    """A batch, or what is drawn for it: then the images' positions instead of the images."""

    images: Tensor  # (B, F), or (B,)
    noise: Tensor  # (B, Z)


class VariationalTask(Task):
    """The negative evidence lower bound; see `VariationalAutoencoder`. `table` lends its images and its draws."""

    def __init__(self, table: Supervised, latent: int) -> None:
        self.name, self.module, self.weight_space = table.name, table.module, table.weight_space
        self.table, self.latent = table, latent

    @property
    def sizes(self) -> Sizes | None:
        return self.table.sizes

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.table.init(generator)

    def loss(self, params: Mapping[str, Tensor], batch: NoisyImages) -> Tensor:
        logits, mean, log_variance = functional_call(self.module, dict(params), tuple(batch))
        count, pixels = batch.images.shape
        likelihood = F.binary_cross_entropy_with_logits(logits, batch.images)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return likelihood + divergence / (count * pixels)

    def draw(self, split: Split, generator: torch.Generator) -> NoisyImages:
        positions = self.table.draw(split, generator)
        return NoisyImages(positions, self._noise(len(positions), generator))

    def gather(self, split: Split, drawn: NoisyImages) -> NoisyImages:
        return drawn._replace(images=self.table.inputs[split][drawn.images])

    def evaluation_batch(self, split: Split) -> NoisyImages:
        images, _ = self.table.evaluation_batch(split)
        return NoisyImages(images, self._noise(len(images), torch.Generator().manual_seed(_EVALUATION_SEED)))

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        images = self.table.inputs["train"]
        noise = torch.randn(count, self.latent, generator=generator, device=generator.device, dtype=images.dtype)
        return noise.to(images.device)
