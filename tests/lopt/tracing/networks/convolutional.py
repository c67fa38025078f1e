"""Convolutional networks: the channels are groups, the taps of the kernels and the positions are fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import (
    Axes,
    Make,
    Network,
    conv,
    conv_transpose,
    dense,
    network,
    norm,
    running,
)


def cnn_pooled() -> Network:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip
    axes = conv("0", "a:4", "3", 3, 3) | norm("1", "a:4")
    axes |= conv("4", "b:5", "a:4", 3, 3) | norm("5", "b:5") | dense("9", "2", "b:5")
    return network(module, (torch.randn(2, 3, 8, 8),), axes, running("1", "a:4") | running("5", "b:5"))


def cnn_flattened() -> Network:
    """Flattened, a channel is a run of 2 x 2 positions."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 4, 7), nn.ReLU(), nn.Linear(7, 2),
    )  # fmt: skip
    axes = conv("0", "a:4", "3", 3, 3) | conv("3", "b:5", "a:4", 3, 3)
    axes |= dense("6", "h:7", "b:5*4") | dense("8", "2", "h:7")
    return network(module, (torch.randn(2, 3, 8, 8),), axes)


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 1, bias=False)
        self.instance, self.leave = nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.silu(self.instance(self.second(F.silu(self.norm(self.first(x)))))))


def group_norm() -> Network:
    """A channel may not leave the group in which it is normalised; the groups may change places."""
    axes = conv("first", "g:2*c[g]:3", "3", 3, 3) | norm("norm", "g:2*c[g]:3")
    axes |= {"second.weight": "d:5, g:2*c[g]:3, 1, 1"} | norm("instance", "d:5") | conv("leave", "2", "d:5", 1, 1)
    return network(GroupNormNet(), (torch.randn(2, 3, 5, 5),), axes)


class Grouped(nn.Module):
    """ResNeXt's block: the middle convolution has two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.reduce = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 1)
        self.middle, self.expand = nn.Conv2d(6, 8, 3, groups=2, padding=1), nn.Conv2d(8, 5, 1)
        self.leave = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        x = F.relu(x + self.expand(F.relu(self.middle(F.relu(self.reduce(x))))))
        return self.leave(x.mean((2, 3)))


def grouped() -> Network:
    axes = conv("enter", "r:5", "3", 1, 1) | conv("reduce", "g:2*i[g]:3", "r:5", 1, 1)
    axes |= conv("middle", "g:2*o[g]:4", "i[g]:3", 3, 3) | conv("expand", "r:5", "g:2*o[g]:4", 1, 1)
    axes |= dense("leave", "2", "r:5")
    return network(Grouped(), (torch.randn(2, 3, 4, 4),), axes)


class Shuffle(nn.Module):
    """ShuffleNet's block: a channel of each group of `first` goes to each group of `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.first_norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 18, 1, groups=2), nn.BatchNorm2d(18)
        self.depthwise = nn.Conv2d(18, 18, 3, groups=18, padding=1)
        self.second, self.leave = nn.Conv2d(18, 15, 1, groups=3), nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(F.relu(self.enter(x)))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.leave(F.relu(self.second(self.depthwise(x))).mean((2, 3)))


def shuffle() -> Network:
    """The 18 channels are 2 groups g of `first` x 3 groups k of `second` x 3 channels c that have both in common.
    So the channels c may be permuted for each g and k on their own; before the shuffle they stand as (g, k, c), and
    after it as (k, c, g)."""
    before, after = "g:2*k:3*c[g,k]:3", "k:3*c[g,k]:3*g:2"
    axes = conv("enter", "g:2*i[g]:2", "3", 1, 1)
    axes |= conv("first", before, "i[g]:2", 1, 1) | norm("first_norm", before)
    axes |= conv("depthwise", after, "1", 3, 3)
    axes |= conv("second", "k:3*o[k]:5", "c[g,k]:3*g:2", 1, 1) | dense("leave", "2", "k:3*o[k]:5")
    return network(Shuffle(), (torch.randn(2, 3, 4, 4),), axes, running("first_norm", before))


class SqueezeExcite(nn.Module):
    """MobileNet's inverted residual block: expand, depthwise, squeeze and excite, project."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.expand, self.expand_norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 7, 1), nn.BatchNorm2d(7)
        self.depthwise, self.depthwise_norm = nn.Conv2d(7, 7, 3, groups=7, padding=1), nn.BatchNorm2d(7)
        self.squeeze, self.excite = nn.Conv2d(7, 5, 1), nn.Conv2d(5, 7, 1)
        self.project, self.leave = nn.Conv2d(7, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = F.hardswish(self.expand_norm(self.expand(x)), inplace=True)
        y = F.hardswish(self.depthwise_norm(self.depthwise(y)), inplace=True)
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.leave((x + self.project(y)).mean((2, 3)))


def squeeze_excite() -> Network:
    axes = conv("enter", "r:4", "3", 3, 3) | conv("expand", "c:7", "r:4", 1, 1) | norm("expand_norm", "c:7")
    axes |= conv("depthwise", "c:7", "1", 3, 3) | norm("depthwise_norm", "c:7")
    axes |= conv("squeeze", "s:5", "c:7", 1, 1) | conv("excite", "c:7", "s:5", 1, 1)
    axes |= conv("project", "r:4", "c:7", 1, 1) | dense("leave", "2", "r:4")
    buffers = running("expand_norm", "c:7") | running("depthwise_norm", "c:7")
    return network(SqueezeExcite(), (torch.randn(2, 3, 6, 6),), axes, buffers)


class UNet(nn.Module):
    """Down twice; up once by interpolation and once by a transposed convolution, each beside what came down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.middle = nn.Conv2d(5, 7, 3, padding=1)
        self.up2, self.grow = nn.Conv2d(5 + 7, 6, 3, padding=1), nn.ConvTranspose2d(6, 3, 2, stride=2)
        self.up1, self.leave = nn.Conv2d(4 + 3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.down1(x))
        coarse = F.relu(self.down2(F.max_pool2d(fine, 2)))
        y = F.relu(self.middle(F.max_pool2d(coarse, 2)))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = self.grow(F.relu(self.up2(torch.cat([coarse, y], 1))))
        return self.leave(F.relu(self.up1(torch.cat([fine, y], 1))))


def unet() -> Network:
    axes = conv("down1", "a:4", "3", 3, 3) | conv("down2", "b:5", "a:4", 3, 3) | conv("middle", "m:7", "b:5", 3, 3)
    axes |= conv("up2", "u:6", "b:5+m:7", 3, 3) | conv_transpose("grow", "u:6", "v:3", 2, 2)
    axes |= conv("up1", "w:8", "a:4+v:3", 3, 3) | conv("leave", "2", "w:8", 1, 1)
    return network(UNet(), (torch.randn(2, 3, 8, 8),), axes)


def autoencoder() -> Network:
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 7),
        nn.Linear(7, 6 * 4), nn.Unflatten(1, (6, 2, 2)), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2, 2), nn.Sigmoid(),
    )  # fmt: skip
    axes = conv("0", "a:3", "2", 3, 3) | conv("2", "b:5", "a:3", 3, 3) | dense("5", "z:7", "b:5*4")
    axes |= (
        dense("6", "c:6*4", "z:7") | conv_transpose("8", "c:6", "d:4", 2, 2) | conv_transpose("10", "d:4", "2", 2, 2)
    )
    return network(module, (torch.randn(2, 2, 8, 8),), axes)


def pixel_shuffle() -> Network:
    """Super-resolution: every channel is made of four that become its finer pixels."""
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(5, 7 * 4, 1), nn.PixelShuffle(2), nn.Conv2d(7, 2, 1)
    )
    axes = conv("0", "a:5", "3", 3, 3) | conv("2", "b:7*4", "a:5", 1, 1) | conv("4", "2", "b:7", 1, 1)
    return network(module, (torch.randn(2, 3, 4, 4),), axes)


class WaveNet(nn.Module):
    """Causal dilated convolutions with gates; every layer adds to the stream and to the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, 4, 1)
        self.gates = nn.ModuleList([nn.Conv1d(4, 2 * width, 2, dilation=d) for d, width in ((1, 5), (2, 3))])
        self.stream = nn.ModuleList([nn.Conv1d(width, 4, 1) for width in (5, 3)])
        self.skip, self.leave = nn.ModuleList([nn.Conv1d(width, 7, 1) for width in (5, 3)]), nn.Conv1d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.enter(x), []
        for dilation, gates, stream, skip in zip((1, 2), self.gates, self.stream, self.skip, strict=True):
            a, b = gates(F.pad(x, (dilation, 0))).chunk(2, 1)
            hidden = torch.tanh(a) * torch.sigmoid(b)
            x = x + stream(hidden)
            skips.append(skip(hidden))
        return self.leave(F.relu(torch.stack(skips).sum(0)))


def wavenet() -> Network:
    """The last layer adds to a stream that nobody reads any more: its weights are used, and do nothing."""
    axes: Axes = conv("enter", "r:4", "2", 1) | conv("leave", "2", "s:7", 1)
    for i, h in enumerate(("h:5", "k:3")):
        axes |= conv(f"gates.{i}", f"{h}+{h}", "r:4", 2)
        axes |= conv(f"stream.{i}", "r:4", h, 1) | conv(f"skip.{i}", "s:7", h, 1)
    return network(WaveNet(), (torch.randn(2, 2, 6),), axes)


NETWORKS: list[Make] = [
    cnn_pooled, cnn_flattened, group_norm, grouped, shuffle, squeeze_excite, unet, autoencoder, pixel_shuffle, wavenet,
]  # fmt: skip
