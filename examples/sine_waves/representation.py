r"""Contrastive learning on sine waves, and how much of amplitude and frequency the embeddings hold.

A network and a noisy, masked copy of it shall have embeddings z, z' that are closer than those of any two networks of
a batch (SimCLR, arXiv 2002.05709, equation 1):

    loss = mean over views i of -log ( exp(cos(z_i, z_i') / T) / Σ over views j other than i of exp(cos(z_i, z_j) / T) )

Afterwards a linear map from embeddings to amplitude and frequency is fitted by least squares on the train split.

Legend of shapes: N networks, d = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Trial, parameter_count
from examples.common.training import Batch, Epoch, Tensors, apply
from examples.sine_waves.waves import WaveSet
from lopt.functionals import mlp


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
        trial: with the splits of `batches`.
    """

    def __init__(self, trial: Trial, contrast: Contrast) -> None:
        self.trial, self.contrast = trial, contrast
        self.model = Encoder(trial.make_model(contrast.embedding), contrast.embedding)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Encoder)
        # While a model is evaluated, the views are the same every time.
        generator = self.trial.generator if model.training else torch.Generator().manual_seed(self.trial.seed)
        noisy = view(batch.tensors, self.contrast, generator)
        projected = [model.projection(model(tensors)) for tensors in (batch.tensors, noisy)]
        return contrastive_losses(projected[0], projected[1], self.contrast.temperature)

    def epochs(self) -> Iterator[Epoch]:
        return self.trial.train(
            self.model,
            lambda model, batch: self.losses(model, batch).mean(),
            lambda model, batch: -self.losses(model, batch),
        )

    def embed(self, split: str) -> Tensor:
        """[N, d]."""
        return apply(self.model, self.trial.splits[split], lambda model, batch: model(batch.tensors))

    def found(self) -> dict[str, object]:
        """The test error of the probe, mean over both coefficients, and the embeddings of the test split."""
        embedded, splits = self.embed("test"), self.trial.splits
        error = probe(self.embed("train"), splits["train"].target, embedded, splits["test"].target)
        return {"test": error, "parameters": parameter_count(self.model.body), "embedded": embedded.tolist()}


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
