"""The 19 input channels of the published rules, and the update that they share.

Eight channels have the shape of the weight (weight, gradient, six momenta), each divided by its RMS over the tensor;
eleven tell the time and are the same everywhere, so the first layer adds them to its bias instead of multiplying them
into every weight: the same values for 8/19 of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt.rules.moments import TIMESCALES, accumulator, constants, moving_average, normalise_rms, time_features
from lopt.rules.rule import Clock, State, Tensors

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
GAINS = tuple(1 - decay for decay in DECAYS)
BASE = DECAYS.index(0.9)  # the momentum that the update is built on
WEIGHT_CHANNELS = 2 + len(DECAYS)
SENSITIVITY = 10.0  # of the logarithms of α and β to their meta-parameters
CHANNELS = WEIGHT_CHANNELS + len(TIMESCALES)


def init_momenta(params: Mapping[str, Tensor]) -> State:
    """Six momenta a weight, on a trailing axis: 24 bytes a parameter, float32 for weights of half precision, too."""
    return State(
        {
            name: {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "momenta": torch.stack([accumulator(p)] * len(DECAYS), -1),
            }
            for name, p in params.items()
        },
        {},
    )


def advance_momenta(grads: Mapping[str, Tensor], state: State) -> State:
    """m_d <- d m_d + (1 - d) g for the six decays d."""
    following = {}
    for name, g in grads.items():
        old = state.tensors[name]
        decays, gains = (constants(values, old["momenta"]) for values in (DECAYS, GAINS))
        momenta = moving_average(old["momenta"], g.to(old["momenta"].dtype).unsqueeze(-1), decays, gains)
        following[name] = {"step": old["step"] + 1, "momenta": momenta}
    return State(following, state.scalars)


class PointwiseFeatures(nn.Module):
    """The pointwise layers of 32 over the 19 channels: tensors [*shape] -> features [n weights in all, width].

    All weights of all tensors run as one matrix, since the layers are the same for every weight.
    """

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(CHANNELS, width)
        self.rest = nn.ModuleList([nn.Linear(width, width) for _ in range(layers - 1)])

    def forward(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State, clock: Clock) -> Tensor:
        weight = self.first.weight
        channels = weight_channels(params, grads, state, weight.dtype)
        x = F.relu(F.linear(channels, weight[:, :WEIGHT_CHANNELS], self.bias(clock)))
        for layer in self.rest:
            x = F.relu(layer(x))
        return x

    def bias(self, clock: Clock) -> Tensor:
        """Of the first layer, with what it makes of the time features: (width,)."""
        weight = self.first.weight
        return self.first.bias + weight[:, WEIGHT_CHANNELS:] @ time_features(clock.step.to(weight.dtype))


def weight_channels(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State, dtype: torch.dtype
) -> Tensor:
    """Weight, gradient and momenta over their RMS, all tensors one after the other: [n weights in all, 8].

    They come in the dtype of θ, whatever the network's: half precision would lose the RMS of a small gradient.
    """
    rows = []
    for name, g in grads.items():
        momenta = state.tensors[name]["momenta"].unbind(-1)
        columns = [normalise_rms(x.to(dtype)).flatten() for x in (params[name], g, *momenta)]
        rows.append(torch.stack(columns, -1))
    return torch.cat(rows)


def unflatten(values: Tensor, like: Mapping[str, Tensor]) -> Tensors:
    """[n weights in all, channels] -> name -> [*shape, channels]."""
    parts = values.split([p.numel() for p in like.values()])
    return {name: part.reshape(*p.shape, values.shape[-1]) for part, (name, p) in zip(parts, like.items(), strict=True)}


class MomentumUpdate(nn.Module):
    r"""u = α (m_0.9 + β f): the step of UNF (arXiv 2402.05232, section 5.2), with α and β meta-learned.

    $$ \alpha = \alpha_0\, e^{10 a}, \qquad \beta = \beta_0\, e^{10 b} $$

    with a = b = 0 at the start: a meta-parameter that moves by 0.01, as the weights of f do between two meta-gradients,
    then changes a step size by a tenth.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 0.001) -> None:
        super().__init__()
        self.initial = (alpha, beta)
        self.a = nn.Parameter(torch.tensor(0.0))
        self.b = nn.Parameter(torch.tensor(0.0))

    @property
    def alpha(self) -> Tensor:
        return self.initial[0] * (SENSITIVITY * self.a).exp()

    @property
    def beta(self) -> Tensor:
        return self.initial[1] * (SENSITIVITY * self.b).exp()

    def forward(self, f: Mapping[str, Tensor], state: State) -> Tensors:
        alpha, beta = self.alpha, self.beta
        return {
            name: alpha * (state.tensors[name]["momenta"][..., BASE] + beta * x.squeeze(-1)) for name, x in f.items()
        }
