"""A dozen networks of the kinds that people write, each with an example: what the time of a trace is measured on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Example: TypeAlias = tuple[nn.Module, tuple[Any, ...]]


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class SelfAttention(nn.Module):
    """Causal, with query, key and value in one projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, c))


class Decoder(nn.Module):
    """A language model with tied embeddings."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, width), nn.Embedding(16, width)
        blocks = [
            (Residual(nn.LayerNorm(width), SelfAttention(width, heads)), Residual(nn.LayerNorm(width), *mlp(width)))
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*(part for pair in blocks for part in pair), nn.LayerNorm(width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return F.linear(self.blocks(x), self.tokens.weight)


class Recurrent(nn.Module):
    """A recurrent encoder, read at the last step."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 16, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(16 * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def mlp(width: int) -> tuple[nn.Module, ...]:
    """The feed-forward half of a transformer block."""
    return nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)


def cnn(*head: nn.Module) -> nn.Sequential:
    """Two convolutions with BatchNorm on 8 x 8 images."""
    body = (nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3))
    return nn.Sequential(*body, nn.ReLU(), *head)


def residual_cnn() -> nn.Sequential:
    """Three residual blocks."""
    blocks = [
        Residual(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        for _ in range(3)
    ]
    return nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def mixer() -> nn.Sequential:
    """Depthwise and pointwise convolutions."""
    blocks = [
        nn.Sequential(Residual(nn.Conv2d(16, 16, 5, groups=16, padding=2), nn.GELU()), nn.Conv2d(16, 16, 1), nn.GELU())
        for _ in range(2)
    ]
    return nn.Sequential(nn.Conv2d(3, 16, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def autoencoder() -> nn.Sequential:
    """Convolutions down, transposed ones up."""
    down = (nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
    up = (nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(12, 3, 4, 2, 1))
    return nn.Sequential(*down, *up)


def _image() -> tuple[Tensor]:
    return (torch.randn(2, 3, 8, 8),)


def _sequence() -> tuple[Tensor]:
    return (torch.randn(2, 6, 8),)


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32, batch_first=True), 2)


NETWORKS: dict[str, Callable[[], Example]] = {
    "MLP": lambda: (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5)), (torch.randn(2, 8),)),
    "residual MLP": lambda: (
        nn.Sequential(nn.Linear(8, 16), *(Residual(nn.LayerNorm(16), *mlp(16)) for _ in range(3)), nn.Linear(16, 5)),
        (torch.randn(2, 8),),
    ),
    "CNN, pooled": lambda: (cnn(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)), _image()),
    "CNN, flattened": lambda: (cnn(nn.Flatten(), nn.Linear(64, 5)), _image()),
    "residual CNN": lambda: (residual_cnn(), _image()),
    "ConvMixer": lambda: (mixer(), _image()),
    "autoencoder": lambda: (autoencoder(), _image()),
    "GRU": lambda: (Recurrent(nn.GRU), _sequence()),
    "LSTM, bidirectional": lambda: (Recurrent(nn.LSTM, bidirectional=True), _sequence()),
    "TransformerEncoder": lambda: (_encoder(), _sequence()),
    "Transformer": lambda: (nn.Transformer(8, 2, 2, 2, 32, batch_first=True), (*_sequence(), *_sequence())),
    "decoder, tied": lambda: (Decoder(), (torch.randint(50, (2, 12)),)),
}
