"""MLP-Mixer (arXiv 2105.01601).

Legend of shapes: B images, L patches, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from tasks.modules.attention import GELUMLP, Patches
from tasks.modules.parts import Network


class MixerBlock(nn.Module):
    """An MLP over patches, then one over features, each behind a LayerNorm and beside a shortcut: (B, L, D) -> same."""

    def __init__(self, patches: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = GELUMLP(patches, token_hidden), GELUMLP(width, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(-2, -1)).transpose(-2, -1)
        return x + self.channels(self.norm2(x))


class PatchMean(nn.Module):
    """The mean over patches, (B, L, D) -> (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


def mixer(
    channels: int, size: int, classes: int, patch: int, blocks: int, width: int, token_hidden: int, channel_hidden: int
) -> Network:
    """Images (B, channels, size, size) -> logits (B, classes)."""
    patches = (size // patch) ** 2
    body = [MixerBlock(patches, width, token_hidden, channel_hidden) for _ in range(blocks)]
    ends = [nn.LayerNorm(width), PatchMean(), nn.Linear(width, classes)]
    return Network([Patches(patch), nn.Linear(channels * patch**2, width), *body, *ends])
