"""Convolutional image classifiers.

Legend of shapes: B images, C channels, H = W pixels a side, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.modules.parts import ACTIVATIONS, IMAGE_NORMS, Network


class GlobalMean(nn.Module):
    """The mean over pixels, (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def cnn(
    channels: Sequence[int],
    classes: int,
    kernel: int,
    strides: Sequence[int],
    activation: str = "relu",
    norm: str = "none",
    initialisation: str = "default",
) -> Network:
    """Convolutions, each with norm and activation, the mean over pixels, a Linear layer: (B, C, H, W) -> (B, K).

    Args:
        channels: of the images, then of the outputs of every convolution.
        strides: of the convolutions.
    """
    layers: list[nn.Module] = []
    for (before, after), stride in zip(itertools.pairwise(channels), strides, strict=True):
        layers.append(nn.Conv2d(before, after, kernel, stride, padding=kernel // 2))
        if norm != "none":
            layers.append(IMAGE_NORMS[norm](after))
        layers.append(ACTIVATIONS[activation]())
    return Network([*layers, GlobalMean(), nn.Linear(channels[-1], classes)], initialisation)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (arXiv 1512.03385, figure 2).

    $$ y = \\mathrm{relu}(\\mathrm{shortcut}(x) + N_2(C_2(\\mathrm{relu}(N_1(C_1(x)))))) $$

    The shortcut is the identity, or a 1x1 convolution with a norm where the shape changes.
    """

    def __init__(self, before: int, after: int, stride: int = 1, norm: str = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=norm == "none")
        self.norm1 = IMAGE_NORMS[norm](after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=norm == "none")
        self.norm2 = IMAGE_NORMS[norm](after)
        if stride == 1 and before == after:
            self.shortcut = nn.Identity()
        else:
            projection = nn.Conv2d(before, after, 1, stride, bias=norm == "none")
            self.shortcut = nn.Sequential(projection, IMAGE_NORMS[norm](after))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(inner)))


def resnet(channels: int, widths: Sequence[int], blocks: int, classes: int, norm: str, stem_stride: int) -> Network:
    """A residual network for small images, (B, C, H, W) -> (B, K): one stage a width, halving the image between stages.

    Args:
        channels: of the images.
        widths: channels of the stages.
        blocks: residual blocks a stage.
        stem_stride: of the first convolution.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, stem_stride, padding=1, bias=norm == "none"),
        IMAGE_NORMS[norm](widths[0]),
        nn.ReLU(),
    ]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(ResidualBlock(before, width, 2 if stage > 0 and block == 0 else 1, norm))
            before = width
    return Network([*layers, GlobalMean(), nn.Linear(before, classes)])
