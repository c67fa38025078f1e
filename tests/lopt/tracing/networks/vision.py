"""Transformers and mixers of image patches: ViT, Swin, MLP-Mixer. Patches have places, which are fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import Axes, Make, Network, conv, dense, network, norm


def qkv(mark: str, heads: int, channels: int) -> tuple[str, str]:
    """Of a fused projection: its rows, and the channels of the values."""
    query, value = (f"H{mark}:{heads}*{x}{mark}[H{mark}]:{channels}" for x in "qv")
    return f"{query}+{query}+{value}", value


class ViTBlock(nn.Module):
    """Heads of 2 channels; the scales of the branches are learned."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale1, self.scale2 = nn.Parameter(0.1 * torch.ones(width)), nn.Parameter(0.1 * torch.ones(width))

    def attend(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, t, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attend(self.norm1(x))
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Four patches and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.randn(1, 1, 6))
        self.place = nn.Parameter(torch.randn(1, 5, 6))
        self.blocks, self.norm = nn.Sequential(ViTBlock(6, 3, 7), ViTBlock(6, 3, 8)), nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit() -> Network:
    axes = conv("patch", "r:6", "3", 4, 4) | {"token": "1, 1, r:6", "place": "1, 5, r:6"}
    axes |= norm("norm", "r:6") | dense("head", "2", "r:6")
    for i, hidden in enumerate(("f:7", "g:8")):
        rows, value = qkv(str(i), 3, 2)
        axes |= norm(f"blocks.{i}.norm1", "r:6") | norm(f"blocks.{i}.norm2", "r:6")
        axes |= dense(f"blocks.{i}.qkv", rows, "r:6") | dense(f"blocks.{i}.proj", "r:6", value)
        axes |= dense(f"blocks.{i}.fc1", hidden, "r:6") | dense(f"blocks.{i}.fc2", "r:6", hidden)
        axes |= {f"blocks.{i}.scale1": "r:6", f"blocks.{i}.scale2": "r:6"}
    return network(ViT(), (torch.randn(2, 3, 8, 8),), axes)


def windows(x: Tensor, size: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, size * size, c)."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


class SwinBlock(nn.Module):
    """Attention within windows of 2 x 2, of an image of 4 x 4 that is first rolled by `shift`."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 7), nn.Linear(7, width)
        self.table = nn.Parameter(torch.randn(9, heads))  # by the distance of two places, 3 x 3 of them
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None] + 1
        self.register_buffer("distance", 3 * apart[0] + apart[1])
        self.register_buffer("mask", self.masked(shift), persistent=False)

    def masked(self, shift: int) -> Tensor:
        """(windows, 4, 4): what the roll brought together from two sides of the image must not meet."""
        side = torch.zeros(1, 4, 4, 1)
        if shift:
            side[:, -shift:] += 1
            side[:, :, -shift:] += 2
        side = windows(side, 2)[..., 0]
        return torch.where(side[:, :, None] == side[:, None], 0.0, -100.0)

    def attend(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (d // self.heads) ** -0.5) @ k.transpose(-2, -1)
        near = self.table[self.get_buffer("distance").view(-1)].view(t, t, -1).permute(2, 0, 1)
        mask = self.get_buffer("mask")[:, None]
        scores = (scores + near).view(-1, len(mask), self.heads, t, t) + mask
        y = scores.softmax(-1).view(n, self.heads, t, t) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, d))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, d = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm1(x)
        y = self.attend(windows(y, 2)).view(b, h // 2, w // 2, 2, 2, d)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, d)
        x = x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Swin(nn.Module):
    """A plain and a shifted block; then every 2 x 2 places become one, of more channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.blocks = nn.Sequential(SwinBlock(6, 2, 0), SwinBlock(6, 2, 1))
        self.merge_norm, self.merge = nn.LayerNorm(24), nn.Linear(24, 8, bias=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).permute(0, 2, 3, 1))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.merge(self.merge_norm(torch.cat(corners, -1)))
        return self.head(self.norm(x).mean((1, 2)))


def swin() -> Network:
    """The table of relative positions has a column for each head."""
    merged = "r:6+r:6+r:6+r:6"
    axes: Axes = conv("patch", "r:6", "3", 2, 2) | norm("merge_norm", merged) | {"merge.weight": f"s:8, {merged}"}
    axes |= norm("norm", "s:8") | dense("head", "2", "s:8")
    for i in (0, 1):
        rows, value = qkv(str(i), 2, 3)
        axes |= norm(f"blocks.{i}.norm1", "r:6") | norm(f"blocks.{i}.norm2", "r:6")
        axes |= dense(f"blocks.{i}.qkv", rows, "r:6") | dense(f"blocks.{i}.proj", "r:6", value)
        axes |= dense(f"blocks.{i}.fc1", f"f{i}:7", "r:6") | dense(f"blocks.{i}.fc2", "r:6", f"f{i}:7")
        axes |= {f"blocks.{i}.table": f"9, H{i}:2"}
    return network(Swin(), (torch.randn(2, 3, 8, 8),), axes)


class MixerBlock(nn.Module):
    """One MLP along the places, one along the channels."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.place = nn.LayerNorm(width), nn.ModuleList([nn.Linear(places, 5), nn.Linear(5, places)])
        self.norm2, self.channel = nn.LayerNorm(width), nn.ModuleList([nn.Linear(width, 7), nn.Linear(7, width)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place[1](F.gelu(self.place[0](self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.channel[1](F.gelu(self.channel[0](self.norm2(x))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 6, 4, 4), nn.Sequential(MixerBlock(4, 6), MixerBlock(4, 6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


def mixer() -> Network:
    axes = conv("patch", "r:6", "3", 4, 4) | norm("norm", "r:6") | dense("head", "2", "r:6")
    for i in (0, 1):
        name, place, channel = f"blocks.{i}", f"p{i}:5", f"c{i}:7"
        axes |= norm(f"{name}.norm1", "r:6") | norm(f"{name}.norm2", "r:6")
        axes |= dense(f"{name}.place.0", place, "4") | dense(f"{name}.place.1", "4", place)
        axes |= dense(f"{name}.channel.0", channel, "r:6") | dense(f"{name}.channel.1", "r:6", channel)
    return network(Mixer(), (torch.randn(2, 3, 8, 8),), axes)


NETWORKS: list[Make] = [vit, swin, mixer]
