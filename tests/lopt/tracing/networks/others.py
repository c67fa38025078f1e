"""Graphs, operators in Fourier space, state spaces; and networks of which only a part can be followed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import Make, Network, conv, dense, network


class GraphAttentionLayer(nn.Module):
    """(nodes, in) and an adjacency (nodes, nodes) -> (nodes, heads, out)."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads, self.transform = heads, nn.Linear(width, heads * out, bias=False)
        self.source, self.target = nn.Parameter(torch.randn(heads, out)), nn.Parameter(torch.randn(heads, out))
        self.bias = nn.Parameter(torch.randn(heads, out))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = self.transform(x).view(len(x), self.heads, -1)
        source, target = (x * self.source).sum(-1), (x * self.target).sum(-1)
        scores = F.leaky_relu(source[None] + target[:, None], 0.2)
        scores = scores.masked_fill(~adjacency[..., None], float("-inf"))
        return torch.einsum("ijh,jhd->ihd", scores.softmax(1), x) + self.bias


class GAT(nn.Module):
    """The heads of the first layer stand side by side, those of the second are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GraphAttentionLayer(3, 2, 5), GraphAttentionLayer(10, 3, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.second(F.elu(self.first(x, adjacency)).flatten(1), adjacency).mean(1)


def graph_attention() -> Network:
    axes = dict.fromkeys(("first.source", "first.target", "first.bias"), "H:2, d[H]:5")
    axes |= dict.fromkeys(("second.source", "second.target", "second.bias"), "K:3, 2")
    axes |= {"first.transform.weight": "H:2*d[H]:5, 3", "second.transform.weight": "K:3*2, H:2*d[H]:5"}
    adjacency = torch.eye(6, dtype=torch.bool) | (torch.rand(6, 6) > 0.5)
    return network(GAT(), (torch.randn(6, 3), adjacency), axes)


class MessagePassing(nn.Module):
    """Messages along edges (2, edges), added up where they arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.message, self.update = nn.Linear(3, 5), nn.Linear(10, 7), nn.GRUCell(7, 5)
        self.leave = nn.Linear(5, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x, (source, target) = torch.tanh(self.enter(x)), edges
        for _ in range(2):
            message = F.relu(self.message(torch.cat([x[source], x[target]], -1)))
            x = self.update(torch.zeros(len(x), 7).index_add(0, target, message), x)
        return self.leave(x)


def message_passing() -> Network:
    axes = dense("enter", "x:5", "3") | dense("message", "m:7", "x:5+x:5") | dense("leave", "2", "x:5")
    gates = "x:5+x:5+x:5"
    axes |= {"update.weight_ih": f"{gates}, m:7", "update.weight_hh": f"{gates}, x:5"}
    axes |= {"update.bias_ih": gates, "update.bias_hh": gates}
    edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    return network(MessagePassing(), (torch.randn(5, 3), edges), axes)


class SpectralConv(nn.Module):
    """A complex matrix (in, out) for each of the lowest frequencies."""

    def __init__(self, width: int, out: int, modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out, modes, dtype=torch.cfloat) / width)

    def forward(self, x: Tensor) -> Tensor:
        _, out, modes = self.weight.shape
        low = torch.fft.rfft(x)[..., :modes]
        spectrum = torch.zeros(len(x), out, x.shape[-1] // 2 + 1, dtype=low.dtype)
        spectrum[..., :modes] = torch.einsum("bim,iom->bom", low, self.weight)
        return torch.fft.irfft(spectrum, n=x.shape[-1])


class FNO(nn.Module):
    """A Fourier neural operator on a line; (batch, points, 1) -> (batch, points, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project, self.leave = nn.Linear(2, 5), nn.Linear(5, 7), nn.Linear(7, 1)
        self.spectral = nn.ModuleList([SpectralConv(5, 5, 3) for _ in range(2)])
        self.pointwise = nn.ModuleList([nn.Conv1d(5, 5, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, x.shape[1]).view(1, -1, 1).expand(len(x), -1, -1)
        y = self.lift(torch.cat([x, grid], -1)).transpose(1, 2)
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            y = F.gelu(spectral(y) + pointwise(y))
        return self.leave(F.gelu(self.project(y.transpose(1, 2))))


def fno() -> Network:
    """Without a skip, each layer has channels of its own, of equal number."""
    axes = dense("lift", "a:5", "2") | dense("project", "h:7", "c:5") | dense("leave", "1", "h:7")
    for i, (of, out) in enumerate((("a:5", "b:5"), ("b:5", "c:5"))):
        axes |= {f"spectral.{i}.weight": f"{of}, {out}, 3"} | conv(f"pointwise.{i}", out, of, 1)
    return network(FNO(), (torch.randn(2, 8, 1),), axes)


class MambaBlock(nn.Module):
    """A selective state space: 7 inner channels, each with a state of 3, and time steps of rank 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.in_proj = nn.RMSNorm(width), nn.Linear(width, 14, bias=False)
        self.conv, self.x_proj = nn.Conv1d(7, 7, 3, groups=7, padding=2), nn.Linear(7, 2 + 3 + 3, bias=False)
        self.dt_proj, self.out_proj = nn.Linear(2, 7), nn.Linear(7, width, bias=False)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, 4.0)).repeat(7, 1))
        self.D = nn.Parameter(torch.ones(7))

    def scan(self, x: Tensor) -> Tensor:
        rank, B, C = self.x_proj(x).split([2, 3, 3], dim=-1)
        step = F.softplus(self.dt_proj(rank))
        decay = torch.exp(step[..., None] * -torch.exp(self.A_log))
        write = step[..., None] * B[:, :, None] * x[..., None]
        state, outputs = torch.zeros_like(write[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + write[:, t]
            outputs.append(torch.einsum("ben,bn->be", state, C[:, t]))
        return torch.stack(outputs, 1) + self.D * x

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.in_proj(self.norm(u)).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2))
        return u + self.out_proj(self.scan(x) * F.silu(z))


class Mamba(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(11, 5), MambaBlock(5), nn.Linear(5, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)))


def mamba() -> Network:
    """Inner channels e, states n, and the entries k of the time steps' low rank."""
    axes = {"embed.weight": "11, r:5", "head.weight": "11, r:5", "block.norm.weight": "r:5"}
    axes |= {"block.in_proj.weight": "e:7+e:7, r:5", "block.out_proj.weight": "r:5, e:7"}
    axes |= {"block.x_proj.weight": "k:2+n:3+n:3, e:7", "block.A_log": "e:7, n:3", "block.D": "e:7"}
    axes |= conv("block.conv", "e:7", "1", 3) | dense("block.dt_proj", "e:7", "k:2")
    return network(Mamba(), (torch.tensor([[1, 2, 3, 4], [10, 0, 5, 5]]),), axes)


class NumpyInside(nn.Module):
    """The second hidden layer goes through numpy, which has no gradient and leaves no trace."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 7)
        self.leave = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        x = torch.from_numpy(np.tanh(x.detach().numpy())).to(x)
        return self.leave(torch.relu(self.third(x)))


def numpy_round_trip() -> Network:
    """tanh is pointwise in numpy, too, so the truth is one group more: the 4 neurons that go there and come back."""
    axes = (
        dense("first", "a:5", "3")
        | dense("second", "4", "a:5")
        | dense("third", "b:7", "4")
        | dense("leave", "2", "b:7")
    )
    return network(NumpyInside(), (torch.randn(4, 3),), axes, told="numpy")


class Pondering(nn.Module):
    """Thinks until it has had enough: the weights and the input decide how long."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.think, self.enough = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        self.leave = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, done = torch.tanh(self.enter(x)), 0.0
        for _ in range(20):
            if done >= 1:
                break
            x = torch.tanh(self.think(x))
            done += torch.sigmoid(self.enough(x)).mean().item()
        return self.leave(x)


def data_dependent_loop() -> Network:
    """What decides is one number, which no permutation of the neurons changes."""
    axes = dense("enter", "h:5", "3") | dense("think", "h:5", "h:5") | dense("enough", "1", "h:5")
    return network(Pondering(), (torch.randn(4, 3),), axes | dense("leave", "2", "h:5"))


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.middle(torch.sort(self.enter(x), -1).values)))


def sort() -> Network:
    """The truth is one group more: what is sorted may be permuted before. But it has ranks as places from then on,
    and a rule for one axis does not tell it apart from an axis that keeps its order."""
    axes = dense("enter", "5", "3") | dense("middle", "h:7", "5") | dense("leave", "2", "h:7")
    return network(Sorted(), (torch.randn(4, 3),), axes)


NETWORKS: list[Make] = [
    graph_attention, message_passing, fno, mamba, numpy_round_trip, data_dependent_loop, sort,
]  # fmt: skip
