"""Momenta, second moments, normalisers and time features: their one home, with every numerical guard named.

Each is a pure function, safe to differentiate through and to run under `torch.func.vmap`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lopt.errors import InvalidInput

# Keeps a tensor of zeros at zero when it is divided by its RMS. An RMS of 3e-13 is far below any gradient that trains,
# and far enough above zero that the derivative, guard^(-3/2), is finite in float32.
RMS_GUARD = 1e-25

# The scales of time, in steps, that a rule can tell apart (learned_optimization's, from VeLO's line of work).
TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


def check_decay(decay: float) -> None:
    if not 0 < decay < 1:
        raise InvalidInput(f"decay: {decay}; it must lie strictly between 0 and 1")


def logit(decay: float) -> float:
    """The inverse of the sigmoid: how a decay between 0 and 1 is stored as a free meta-parameter."""
    check_decay(decay)
    return math.log(decay) - math.log1p(-decay)


def moving_average(old: Tensor, new: Tensor, decay: Tensor | float, gain: Tensor | float) -> Tensor:
    """decay * old + gain * new in the dtype of old; gain is passed apart since 1 - decay loses its digits near 1."""
    return (decay * old + gain * new).to(old.dtype)


def accumulator(p: Tensor) -> Tensor:
    """Zeros of the shape of a weight for what a rule remembers of it, in float32 where the weight is of half precision.

    A square of a small gradient, or 1e-8 beside it, is zero in float16, and a moving average at 0.999 stands still in
    bfloat16. A float64 weight keeps a float64 state.
    """
    return torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))


def debias(step: Tensor, log_decay: Tensor) -> Tensor:
    """1 - decay^step: what a moving average from zero has collected of its weights after `step` updates."""
    return -torch.expm1(step * log_decay)


def normalise_rms(x: Tensor) -> Tensor:
    """x over its root mean square over all entries; zeros stay zeros."""
    return x * torch.rsqrt(x.square().mean() + RMS_GUARD)


_CONSTANTS: dict[tuple[object, ...], Tensor] = {}


def constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and on the device of `like`: [len(values)].

    Made once: copying them to a device in every step would wait for it, and a CUDA graph cannot capture it.
    """
    key = (values, like.dtype, like.device)
    if torch.compiler.is_compiling() or key not in _CONSTANTS:
        with torch.inference_mode(False):  # may be used in a graph of autograd later
            made = torch.tensor(values, dtype=like.dtype, device=like.device)
        if torch.compiler.is_compiling() or type(made) is not Tensor:  # a fake one must not be kept
            return made
        _CONSTANTS[key] = made
    return _CONSTANTS[key]


def timescales(like: Tensor) -> Tensor:
    """The eleven time scales τ: (11,), of the dtype and on the device of `like`."""
    return constants(TIMESCALES, like)


def time_features(step: Tensor, scales: Tensor | None = None) -> Tensor:
    """tanh(t / τ - 1) for the eleven time scales τ: from -0.76 at the start to 1 when τ is long past. () -> (11,).

    Args:
        scales: what `timescales` gives, if it is at hand.
    """
    return torch.tanh(step / (timescales(step) if scales is None else scales) - 1)
