r"""Contrastive learning on sine waves, and how much of amplitude and frequency the embeddings hold.

A network and a noisy, masked copy of it shall have embeddings z, z' that are closer than those of any two networks of
a batch (SimCLR, arXiv 2002.05709, equation 1):

    loss = mean over views i of -log ( exp(cos(z_i, z_i') / T) / Σ over views j other than i of exp(cos(z_i, z_j) / T) )

Afterwards a linear map from embeddings to amplitude and frequency is fitted by least squares on the train split.

Legend of shapes: N networks, d = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Architecture, Recipe, make_model, train
from examples.common.training import EVALUATED, Batch, Epoch, Tensors
from examples.sine_waves.methods import augmentation, model_name, prepared
from examples.sine_waves.waves import WaveSet
from lopt.functionals import mlp
from lopt.weight_space import WeightSpace


@dataclass(frozen=True)
class Contrast:
    """How views are made and compared.

    Args:
        embedding: d.
        temperature: T.
        noise: standard deviation of what is added to a tensor, over that of the tensor in its network.
        masked: the share of weights that are set to zero.
    """

    embedding: int = 16
    temperature: float = 0.1
    noise: float = 0.2
    masked: float = 0.5


def batches(waves: WaveSet) -> dict[str, Batch]:
    """Weights, amplitudes and frequencies [N, 2]."""
    return {split: Batch(some.tensors, some.wave) for split, some in waves.splits.items()}


def view(tensors: Tensors, contrast: Contrast, generator: torch.Generator) -> dict[str, Tensor]:
    """A noisy, masked copy: name -> [N, *S]."""
    found = {}
    for name, x in tensors.items():
        spread = x.flatten(1).std(1, correction=0).view(-1, *[1] * (x.dim() - 1))
        noisy = x + contrast.noise * spread * torch.randn(x.shape, generator=generator)
        found[name] = noisy * (torch.rand(x.shape, generator=generator) >= contrast.masked)
    return found


def contrastive_losses(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The loss of each network, mean over its two views.

    Shapes:
        one, other: projections of both views, [N, d]. The result: [N].

    >>> apart = torch.eye(3)
    >>> contrastive_losses(apart, apart, 0.1).max() < 1e-3, contrastive_losses(apart, apart.roll(1, 0), 0.1).min() > 9
    (tensor(True), tensor(True))
    """
    count = len(one)
    both = F.normalize(torch.cat([one, other]), dim=1)
    alike = (both @ both.T / temperature).masked_fill(torch.eye(2 * count, dtype=torch.bool), float("-inf"))
    partner = torch.arange(2 * count).roll(count)
    return F.cross_entropy(alike, partner, reduction="none").view(2, count).mean(0)


class Encoder(nn.Module):
    """A network from weights to embeddings, and the projection that the loss looks at."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.projection = body, mlp([width, width, width])

    def forward(self, tensors: Tensors) -> Tensor:
        return self.body(tensors)


class Representation:
    """One method with one seed: an `Experiment`.

    Args:
        splits: those of `batches`.
    """

    def __init__(
        self,
        method: str,
        space: WeightSpace,
        splits: Mapping[str, Batch],
        size: Architecture,
        recipe: Recipe,
        contrast: Contrast,
        seed: int,
    ) -> None:
        self.recipe, self.contrast, self.seed = recipe, contrast, seed
        self.splits = prepared(method, space, splits)
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = augmentation(method, space, self.generator)
        torch.manual_seed(seed)
        body = make_model(model_name(method), space, self.splits["train"].tensors, contrast.embedding, size)
        self.model = Encoder(body, contrast.embedding)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Encoder)
        # While a model is evaluated, the views are the same every time.
        generator = self.generator if model.training else torch.Generator().manual_seed(self.seed)
        noisy = view(batch.tensors, self.contrast, generator)
        projected = [model.projection(model(tensors)) for tensors in (batch.tensors, noisy)]
        return contrastive_losses(projected[0], projected[1], self.contrast.temperature)

    def epochs(self) -> Iterator[Epoch]:
        torch.manual_seed(self.seed)
        return train(
            self.model,
            self.splits["train"],
            self.splits["validation"],
            lambda model, batch: self.losses(model, batch).mean(),
            lambda model, batch: -self.losses(model, batch),
            self.recipe,
            self.generator,
            augment=self.augment,
        )

    @torch.no_grad()
    def embed(self, split: str) -> Tensor:
        """[N, d]."""
        self.model.eval()
        batch = self.splits[split]
        rows = [slice(start, start + EVALUATED) for start in range(0, len(batch), EVALUATED)]
        return torch.cat([self.model(batch.rows(some).tensors) for some in rows])

    def found(self) -> dict[str, object]:
        """The test error of the probe, mean over both coefficients, and the embeddings of the test split."""
        embedded = self.embed("test")
        error = probe(self.embed("train"), self.splits["train"].target, embedded, self.splits["test"].target)
        count = sum(p.numel() for p in self.model.body.parameters())
        return {"test": error, "parameters": count, "embedded": embedded.tolist()}


def probe(seen: Tensor, target: Tensor, embedded: Tensor, wanted: Tensor) -> float:
    """The mean squared error of the best affine map from `seen` to `target` on (`embedded`, `wanted`).

    >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    >>> y = x[:, :2] * 3 + 1
    >>> probe(x[:15], y[:15], x[15:], y[15:]) < 1e-8
    True
    """
    with_one = [F.pad(x.double(), (0, 1), value=1.0) for x in (seen, embedded)]
    solved = torch.linalg.lstsq(with_one[0], target.double(), driver="gelsd").solution
    return float((with_one[1] @ solved - wanted).square().mean())
