"""Convolutional networks with skips: ResNets, whose shortcuts tie or place channels, and DenseNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import Axes, Make, Network, dense, network, norm, running


class BasicBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Every other pixel; new channels of zeros on both sides."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class ResNet(nn.Module):
    def __init__(self, *blocks: BasicBlock, widths: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(widths[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _unit(conv: str, bn: str, out: str, of: str, taps: int = 3) -> tuple[Axes, Axes]:
    """A convolution without a bias and its BatchNorm: parameters and buffers."""
    return {f"{conv}.weight": f"{out}, {of}, {taps}, {taps}"} | norm(bn, out), running(bn, out)


def _units(*units: tuple[Axes, Axes]) -> tuple[Axes, Axes]:
    axes: Axes = {}
    buffers: Axes = {}
    for parameters, statistics in units:
        axes |= parameters
        buffers |= statistics
    return axes, buffers


def resnet() -> Network:
    """The projection frees the second stream from the first; the channels inside a block are the block's own."""
    projection = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
    blocks = BasicBlock(4, 4, 1, nn.Identity()), BasicBlock(4, 6, 2, projection), BasicBlock(6, 6, 1, nn.Identity())
    axes, buffers = _units(
        _unit("conv", "bn", "r:4", "3"),
        _unit("blocks.0.conv1", "blocks.0.bn1", "a:4", "r:4"),
        _unit("blocks.0.conv2", "blocks.0.bn2", "r:4", "a:4"),
        _unit("blocks.1.conv1", "blocks.1.bn1", "b:6", "r:4"),
        _unit("blocks.1.conv2", "blocks.1.bn2", "s:6", "b:6"),
        _unit("blocks.1.shortcut.0", "blocks.1.shortcut.1", "s:6", "r:4", 1),
        _unit("blocks.2.conv1", "blocks.2.bn1", "c:6", "s:6"),
        _unit("blocks.2.conv2", "blocks.2.bn2", "s:6", "c:6"),
    )
    module = ResNet(*blocks, widths=(4, 6))
    return network(module, (torch.randn(2, 3, 6, 6),), axes | dense("fc", "2", "s:6"), buffers)


def resnet_padded() -> Network:
    """The second stream is 2 new channels, the 3 of the first stream, and 2 new ones. The truth is a little more: the
    four new ones may change places across the old ones, too, for which an axis has no words."""
    blocks = (
        BasicBlock(3, 3, 1, nn.Identity()),
        BasicBlock(3, 7, 2, PaddedShortcut()),
        BasicBlock(7, 7, 1, nn.Identity()),
    )
    stream = "n:2+r:3+m:2"
    axes, buffers = _units(
        _unit("conv", "bn", "r:3", "3"),
        _unit("blocks.0.conv1", "blocks.0.bn1", "a:3", "r:3"),
        _unit("blocks.0.conv2", "blocks.0.bn2", "r:3", "a:3"),
        _unit("blocks.1.conv1", "blocks.1.bn1", "b:7", "r:3"),
        _unit("blocks.1.conv2", "blocks.1.bn2", stream, "b:7"),
        _unit("blocks.2.conv1", "blocks.2.bn1", "c:7", stream),
        _unit("blocks.2.conv2", "blocks.2.bn2", stream, "c:7"),
    )
    module = ResNet(*blocks, widths=(3, 7))
    return network(module, (torch.randn(2, 3, 6, 6),), axes | dense("fc", "2", stream), buffers)


class DenseLayer(nn.Module):
    """Adds 3 channels after those that are there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> Network:
    """Two dense blocks of two layers, with a transition between."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), DenseLayer(4), DenseLayer(7),
        nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1, bias=False), nn.AvgPool2d(2),
        DenseLayer(5), DenseLayer(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 2),
    )  # fmt: skip
    axes = {"0.weight": "a:4, 3, 3, 3"} | {"5.weight": "d:5, a:4+b:3+c:3, 1, 1"} | norm("3", "a:4+b:3+c:3")
    buffers = running("3", "a:4+b:3+c:3")
    for layer, old, new in (
        ("1", "a:4", "b:3"),
        ("2", "a:4+b:3", "c:3"),
        ("7", "d:5", "e:3"),
        ("8", "d:5+e:3", "f:3"),
    ):
        axes |= norm(f"{layer}.norm", old) | {f"{layer}.conv.weight": f"{new}, {old}, 3, 3"}
        buffers |= running(f"{layer}.norm", old)
    return network(module, (torch.randn(2, 3, 4, 4),), axes | dense("11", "2", "d:5+e:3+f:3"), buffers)


NETWORKS: list[Make] = [resnet, resnet_padded, densenet]
