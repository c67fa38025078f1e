"""What networks are put together from: activations, norms, initialisations, each a registry by name.

Batch norms keep no running statistics: they normalise by the batch at hand, in training and in evaluation alike, so
that a network stays a pure function of its parameters and a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Sine(nn.Module):
    """x -> sin(frequency * x), elementwise."""

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)

    def extra_repr(self) -> str:
        return f"frequency={self.frequency}"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "sine": Sine,
}


def _groups(channels: int) -> nn.Module:
    """As many groups as divide the channels, at most 4."""
    return nn.GroupNorm(math.gcd(channels, 4), channels)


# From a number of features to a norm of (B, features) ...
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda features: nn.Identity(),
    "batch": functools.partial(nn.BatchNorm1d, track_running_stats=False),
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "group": _groups,
}
# ... and from a number of channels to one of (B, channels, H, W).
IMAGE_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": functools.partial(nn.BatchNorm2d, track_running_stats=False),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "group": _groups,
}
TOKEN_NORMS: dict[str, Callable[[int], nn.Module]] = {name: NORMS[name] for name in ("layer", "rms")}

# How the weights of linear and convolutional layers begin; biases are zero then. `default`: as PyTorch has them.
INITIALISATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": functools.partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "kaiming_normal": functools.partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "lecun_normal": functools.partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "orthogonal": nn.init.orthogonal_,
}

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Network(nn.Sequential):
    """Layers one after the other, initialised by the scheme of that name."""

    def __init__(self, layers: Iterable[nn.Module], initialisation: str = "default") -> None:
        super().__init__(*layers)
        self.initialisation = initialisation

    def reset_parameters(self) -> None:
        """Runs after every layer has initialised itself."""
        scheme = INITIALISATIONS[self.initialisation]
        if scheme is None:
            return
        for part in self.modules():
            if isinstance(part, _WEIGHTED):
                scheme(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


class Embedding(nn.Embedding):
    """An embedding that begins with a standard deviation of 0.02 (GPT-2), so that it can serve as output layer too."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
