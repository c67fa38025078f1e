"""Transformers: attention written out, so that `torch.func.vmap` batches it; pre-norm blocks.

Legend of shapes: B sequences, L tokens, D width, H heads, V vocabulary, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.modules.parts import TOKEN_NORMS, Embedding


class Attention(nn.Module):
    r"""Multi-head self-attention, (..., L, D) -> (..., L, D) (arXiv 1706.03762, equation 1).

    $$ \mathrm{softmax}(Q K^\top / \sqrt{D / H})\, V \quad\text{a head; causal: of the positions up to one's own} $$
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (..., H, L, L)
        if self.causal:
            length = x.shape[-2]
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))


class GELUMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (arXiv 2002.05202, equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


MLPS: dict[str, Callable[[int, int], nn.Module]] = {"gelu": GELUMLP, "swiglu": SwiGLU}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool, norm: str, mlp: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = TOKEN_NORMS[norm](width), TOKEN_NORMS[norm](width)
        self.attention = Attention(width, heads, causal)
        self.mlp = MLPS[mlp](width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TransformerLM(nn.Module):
    """A causal transformer with learned positions: tokens (B, L) -> logits of the next token (B, L, V).

    Args:
        length: the largest L.
        hidden: width inside the MLP of a block.
        tied: the embedding serves as output layer.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        blocks: int,
        width: int,
        heads: int,
        hidden: int,
        norm: str = "layer",
        mlp: str = "gelu",
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, width)
        self.position = Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads, hidden, True, norm, mlp) for _ in range(blocks)])
        self.norm = TOKEN_NORMS[norm](width)
        self.head = None if tied else nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[-1]]
        x = self.norm(self.blocks(x))
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)


class VisionTransformer(nn.Module):
    """Patches as tokens, the mean over them classified: (B, C, S, S) -> (B, K) (arXiv 2010.11929, no class token)."""

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        patch: int,
        blocks: int,
        width: int,
        heads: int,
        hidden: int,
        norm: str = "layer",
        mlp: str = "gelu",
    ) -> None:
        super().__init__()
        self.patches = Patches(patch)
        self.embedding = nn.Linear(channels * patch**2, width)
        self.position = Embedding((size // patch) ** 2, width)
        self.blocks = nn.Sequential(*[Block(width, heads, hidden, False, norm, mlp) for _ in range(blocks)])
        self.norm = TOKEN_NORMS[norm](width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(self.patches(images)) + self.position.weight
        return self.head(self.norm(self.blocks(x)).mean(-2))


class Patches(nn.Module):
    """Cuts images into squares, (B, C, S, S) -> (B, (S / patch)², C * patch²)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        cut = images.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # (B, C, rows, p, columns, p)
        return cut.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)
