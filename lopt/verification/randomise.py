"""Random weights under which a network computes something that depends on all of them.

At its initialisation a network hides its structure: biases and the last layers of branches are zero, norms are one,
running statistics are uniform, so a permutation that leaves one of them out changes nothing. Here every tensor is
drawn anew about its own mean, at its own scale, and comes alive if that scale was zero; deep networks neither explode
nor die, since matrices keep the scale of an initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

# How far each tensor is moved, from thorough to mild; the milder ones are for networks that are ill-defined or chaotic
# far from where they are, such as one with a logarithm of a weight.
STRENGTHS = (1.0, 0.3, 0.03)

_VECTOR_FLOOR = 0.1  # smallest spread of vectors and scalars: biases, the gains of a norm
_MATRIX_FLOOR = 0.5  # the same for matrices, over the root of their fan-in; a Linear starts at 0.58
_RELATIVE_FLOOR = 0.25  # smallest spread over the tensor's own RMS: takes apart what is uniform


def randomised(tensor: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    r"""The tensor, moved at random: `x + strength (x' - x)` with x' uniform, of x's mean and at least its spread.

    $$ x' = \bar x + \sigma u, \quad \sigma = \max(\mathrm{std}(x), \tfrac14 \mathrm{rms}(x), \mathrm{floor}), \quad
       u \sim U(-\sqrt3, \sqrt3) $$

    A tensor of one sign keeps it, for variances and temperatures: x' is uniform between half and 3/2 of its mean.
    Integers, booleans, sparse tensors and those with an infinity (masks) stay as they are.

    >>> g = torch.Generator().manual_seed(0)
    >>> bool((randomised(torch.ones(100, dtype=torch.float64), 1.0, g) > 0).all())
    True
    >>> randomised(torch.arange(3), 1.0, g)
    tensor([0, 1, 2])
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout is not torch.strided:
        return tensor
    if not tensor.numel() or not bool(tensor.isfinite().all()):
        return tensor
    if tensor.is_complex():
        parts = torch.view_as_real(tensor)
        return torch.view_as_complex(parts + strength * (_drawn(parts, generator) - parts))
    return tensor + strength * (_drawn(tensor, generator) - tensor)


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device sees the same."""
    uniform = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device) * 2 - 1
    mean, rms = tensor.mean(), tensor.square().mean().sqrt()
    one_sign = bool((tensor >= 0).all()) or bool((tensor <= 0).all())
    if one_sign and bool(rms > 0):
        return mean * (1 + uniform / 2)
    spread = torch.maximum(tensor.std(correction=0), _RELATIVE_FLOOR * rms).clamp(min=_floor(tensor))
    return mean + 3**0.5 * spread * uniform


def _floor(tensor: Tensor) -> float:
    shape = [size for size in tensor.shape if size > 1]
    return _VECTOR_FLOOR if len(shape) < 2 else _MATRIX_FLOOR / (tensor.numel() / shape[0]) ** 0.5
