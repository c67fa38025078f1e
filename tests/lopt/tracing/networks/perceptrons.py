"""Networks of Linear layers: stacks, skips, gates, sets, auto-encoders, weights made by networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import Make, Network, dense, network, norm, running


def mlp() -> Network:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    axes = dense("0", "a:5", "3") | dense("2", "b:7", "a:5") | dense("4", "2", "b:7")
    return network(module, (torch.randn(4, 3),), axes)


def mlp_of_equal_widths() -> Network:
    """Inputs, two hidden layers and outputs of 4: equal sizes are not equal axes."""
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    axes = dense("0", "a:4", "4") | dense("2", "b:4", "a:4") | dense("4", "4", "b:4")
    return network(module, (torch.randn(3, 4),), axes)


def mlp_with_batch_norm() -> Network:
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.PReLU(5), nn.Dropout(), nn.Linear(5, 2))
    axes = dense("0", "h:5", "3") | norm("1", "h:5") | {"2.weight": "h:5"} | dense("4", "2", "h:5")
    return network(module, (torch.randn(4, 3),), axes, running("1", "h:5"))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def residual_mlp() -> Network:
    """The residual stream r is one group through all blocks; each block has hidden neurons of its own."""
    module = nn.Sequential(nn.Linear(3, 6), ResidualBlock(6, 7), ResidualBlock(6, 5), nn.LayerNorm(6), nn.Linear(6, 2))
    axes = dense("0", "r:6", "3") | norm("3", "r:6") | dense("4", "2", "r:6")
    for block, hidden in (("1", "h:7"), ("2", "k:5")):
        axes |= norm(f"{block}.norm", "r:6")
        axes |= dense(f"{block}.up", hidden, "r:6") | dense(f"{block}.down", "r:6", hidden)
    return network(module, (torch.randn(4, 3),), axes)


def gated_mlp() -> Network:
    """glu(x) = a * sigmoid(b) of two halves, which move together."""
    module = nn.Sequential(nn.Linear(3, 10), nn.GLU(), nn.Linear(5, 2))
    return network(module, (torch.randn(4, 3),), dense("0", "h:5+h:5", "3") | dense("2", "2", "h:5"))


class Maxout(nn.Module):
    """Every unit is the largest of its two pieces, which may be swapped unit by unit."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.leave = nn.Linear(3, 5 * 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.pieces(x).view(-1, 5, 2).amax(-1))


def maxout() -> Network:
    axes = dense("pieces", "h:5*p[h]:2", "3") | dense("leave", "2", "h:5")
    return network(Maxout(), (torch.randn(4, 3),), axes)


class TiedAutoencoder(nn.Module):
    """One matrix encodes and, transposed, decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.hidden_bias, self.visible_bias = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(F.linear(x, self.weight, self.hidden_bias))
        return F.linear(hidden, self.weight.t(), self.visible_bias)


def tied_autoencoder() -> Network:
    axes = {"weight": "h:5, 3", "hidden_bias": "h:5", "visible_bias": "3"}
    return network(TiedAutoencoder(), (torch.randn(4, 3),), axes)


class VAE(nn.Module):
    """Returns the reconstruction, and mean and log-variance of the code for the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.log_variance = nn.Linear(11, 7), nn.Linear(7, 3), nn.Linear(7, 3)
        self.decode, self.leave = nn.Linear(3, 5), nn.Linear(5, 11)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.encode(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.leave(F.relu(self.decode(code))), mean, log_variance


def vae() -> Network:
    """The code is an output, and the noise that meets it does not move with it: fixed, twice over."""
    axes = dense("encode", "e:7", "11") | dense("mean", "3", "e:7") | dense("log_variance", "3", "e:7")
    axes |= dense("decode", "d:5", "3") | dense("leave", "11", "d:5")
    return network(VAE(), (torch.randn(4, 11),), axes)


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.leave = nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 7)]), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.leave(x)


def siren() -> Network:
    axes = dense("layers.0", "a:5", "2") | dense("layers.1", "b:7", "a:5") | dense("leave", "1", "b:7")
    return network(Siren(), (torch.rand(6, 2) * 2 - 1,), axes)


class FourierFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 4))
        self.enter, self.leave = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * torch.pi * x @ self.get_buffer("frequencies")
        return self.leave(F.relu(self.enter(torch.cat([angles.sin(), angles.cos()], -1))))


def fourier_features() -> Network:
    """The frequencies are a constant of the network, not a weight: their order is fixed."""
    axes = dense("enter", "h:5", "8") | dense("leave", "3", "h:5")
    return network(FourierFeatures(), (torch.rand(6, 2),), axes)


class DeepSet(nn.Module):
    """A sum over the elements of a set, (batch, elements, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.element = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
        self.set = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.set(self.element(x).sum(1))


def deep_set() -> Network:
    axes = dense("element.0", "a:5", "3") | dense("element.2", "b:7", "a:5")
    axes |= dense("set.0", "c:4", "b:7") | dense("set.2", "2", "c:4")
    return network(DeepSet(), (torch.randn(2, 6, 3),), axes)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.meet = nn.Linear(3, 5), nn.Linear(4, 7), nn.Bilinear(5, 7, 6)
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.leave(self.meet(self.left(x).tanh(), self.right(y).tanh()).tanh())


def bilinear() -> Network:
    axes = dense("left", "a:5", "3") | dense("right", "b:7", "4") | dense("leave", "2", "c:6")
    axes |= {"meet.weight": "c:6, a:5, b:7", "meet.bias": "c:6"}
    return network(Bilinear(), (torch.randn(4, 3), torch.randn(4, 4)), axes)


class Hypernetwork(nn.Module):
    """A network of the context writes the weights of a 3-5-2 network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 7)
        self.first_weight, self.first_bias = nn.Linear(7, 5 * 3), nn.Linear(7, 5)
        self.second_weight, self.second_bias = nn.Linear(7, 2 * 5), nn.Linear(7, 2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        code = F.relu(self.body(context))
        hidden = torch.tanh(F.linear(x, self.first_weight(code).view(5, 3), self.first_bias(code)))
        return F.linear(hidden, self.second_weight(code).view(2, 5), self.second_bias(code))


def hypernetwork() -> Network:
    """The neurons h of the network that is written are rows of those that write it."""
    axes = dense("body", "c:7", "4")
    axes |= dense("first_weight", "h:5*3", "c:7") | dense("first_bias", "h:5", "c:7")
    axes |= dense("second_weight", "2*h:5", "c:7") | dense("second_bias", "2", "c:7")
    return network(Hypernetwork(), (torch.randn(6, 3), torch.randn(4)), axes)


class Ensemble(nn.Module):
    """The mean of three networks, whose weights are stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.up_bias = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(3, 5))
        self.down, self.down_bias = nn.Parameter(torch.randn(3, 5, 2)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("bi,eih->ebh", x, self.up) + self.up_bias[:, None])
        return (torch.einsum("ebh,eho->ebo", hidden, self.down) + self.down_bias[:, None]).mean(0)


def ensemble() -> Network:
    """The members E may change places, and each has hidden neurons of its own."""
    axes = {"up": "E:3, 4, h[E]:5", "up_bias": "E:3, h[E]:5", "down": "E:3, h[E]:5, 2", "down_bias": "E:3, 2"}
    return network(Ensemble(), (torch.randn(6, 4),), axes)


NETWORKS: list[Make] = [
    mlp, mlp_of_equal_widths, mlp_with_batch_norm, residual_mlp, gated_mlp, maxout, tied_autoencoder, vae, siren,
    fourier_features, deep_set, bilinear, hypernetwork, ensemble,
]  # fmt: skip
