"""The orthogonal matrix next to a momentum, by Newton and Schulz's iteration: Muon's direction."""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.rules.moments import RMS_GUARD

# Of Muon (Keller Jordan, 2024): x <- a x + b x^3 + c x^5 takes every singular value in (0, 1] to about 1 (0.7 to 1.2)
# in five steps; steep at 0, so small ones rise fast, and therefore not exact at 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalise(x: Tensor) -> Tensor:
    """U V^T for x = U S V^T, nearly: every singular value lies near 1; zeros stay zeros. [*, n, m] -> [*, n, m].

    Equivariant: permuting rows or columns of x permutes those of the result. On a GPU it runs in bfloat16.

    >>> s = torch.linalg.svdvals(orthogonalise(torch.randn(8, 5, generator=torch.Generator().manual_seed(0))))
    >>> bool((s > 0.6).all() and (s < 1.3).all())
    True
    """
    a, b, c = _COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y * torch.rsqrt(y.square().sum((-2, -1), keepdim=True) + RMS_GUARD)
    y = y.to(torch.bfloat16) if y.is_cuda else y
    for _ in range(_STEPS):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    y = y.to(x.dtype)
    return y.mT if tall else y


def orthogonal_direction(m: Tensor) -> Tensor:
    """The orthogonalised momentum with an RMS of about 1: [*, r, c]."""
    return orthogonalise(m) * max(m.shape[-2:]) ** 0.5
