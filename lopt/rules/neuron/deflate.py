r"""Deflation: the largest singular values of an update are brought down to the size of the others.

The gradient of a matrix has a few directions that are far larger than all others, and steps along it are steps along
these. Muon brings all singular values to 1, by fifteen products of matrices. Deflation brings down the first few, which
takes three products with a thin matrix P: its r columns, which are a part of the state, follow the first right singular
vectors of the update X [n, c], n >= c, from step to step,

    z_k = X p_k,    u = X - sum_k (1 - γ_k) z_k p_k^T,    γ_k = min(1, τ / |z_k|),    P <- orth(X^T Z),

where τ is the root mean square of the other singular values, τ² (c - r) = |X|² - |Z|². The last is a step of orthogonal
iteration (Golub and Van Loan, Matrix Computations, section 8.2.4), one at every step of training, as in Dion (arXiv
2504.05295), which takes orthonormal steps in the subspace and leaves the rest to later ones; here the rest is in the
update, too. A matrix with fewer rows than columns is transposed.

P begins with sums over the rows of functions of the weights, which permute with the neurons: so P does, too, and the
update. It keeps a little of what it was, so that it is still there after gradients of zero. Where all weights are equal
at first, as in a projection that begins at 0, these functions tell one direction alone. Rounding then chooses the
others, and the update permutes with the neurons only once P has found the singular vectors.

Legend: b matrices, r columns of P, [n, c] a matrix with n >= c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.rules.moments import RMS_GUARD
from lopt.rules.neuron.form import Form
from lopt.rules.neuron.layout import Layout, handfuls
from lopt.rules.rule import Tensors
from lopt.rules.sharded import distribute_like, local, part_of, whole

_torch: Any = torch  # the foreach operators have no public names

SUBSPACE = "subspace"  # the key of the state
MOST = 8  # singular values that are brought down: what the kernels are made for
_LEAST = 4  # singular values for each one that is
_KEPT = 1e-3  # share of P in the next one, before this is made orthonormal
_RIDGE = 1e-5  # on the diagonal of P^T P where this is inverted: columns that are alike stay finite


def rank_of(form: Form, most: int) -> int:
    """How many singular values of a tensor are brought down: at most `most`, and a quarter of all; 0 unless hidden.

    In a space of shapes alone some tensors turn out to be ends of the network: their P stays as it was.
    """
    return min(most, min(form.rows, form.columns) // _LEAST) if form.hidden else 0


def first_subspace(form: Form, w: Tensor, rank: int) -> Tensor:
    """P^T for the weights of a tensor, in any shape: orthonormal rows, [b, r, c]."""
    w = w.reshape(form.shape)
    w = w.mT if form.rows < form.columns else w
    w = w * torch.rsqrt(w.square().mean((-2, -1), keepdim=True) + RMS_GUARD)
    y = torch.stack([torch.sin(k * (w + 1)).mean(-2) for k in range(1, rank + 1)], -2)
    return _orthonormal(y - (1 - _KEPT) * y.mean(-1, keepdim=True))  # without its mean, which is what is alike in rows


def subspaces_of(layout: Layout, state: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """P^T of all tensors whose updates are to be deflated."""
    return {k: state[k][SUBSPACE] for k in layout.names[layout.n_others :] if SUBSPACE in state[k]}


def deflate_in_place(
    layout: Layout,
    tensors: slice,
    directions: Sequence[Tensor],
    params: Sequence[Tensor],
    subspaces: Mapping[str, Tensor],
) -> None:
    """Deflates those of some updates that have a P, which is advanced; every process does so for all that they share.

    Args:
        tensors: which of the layout these are.
        directions: the part of each that this process holds, contiguous.
        params: sharded as the updates are.
    """
    for stack in layout.stacks:
        for some in handfuls(stack, tensors, _together(layout.device)):
            names = layout.names[some]
            if names[0] not in subspaces:
                continue
            own = slice(some.start - tensors.start, some.stop - tensors.start)
            held = [subspaces[name] for name in names]
            pairs = list(zip(directions[own], params[own], strict=True))
            x = [whole(distribute_like(d, p)).reshape(stack.form.shape) for d, p in pairs]
            u, following = deflate(torch.cat(x), torch.cat(held).to(layout.dtype))
            for (d, p), update in zip(pairs, u.split(stack.form.batch), strict=True):
                d.copy_(local(part_of(update.reshape(p.shape), p)))
            _torch._foreach_copy_(held, following.split(stack.form.batch))


def _together(device: torch.device) -> int:
    """Weights of the matrices that run as one, unless one of them has more: they are copied."""
    return 1 << 25 if device.type == "cuda" else 1 << 22


def deflate(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The deflated updates, and the next P^T.

    Args:
        x: [b, n, c], or [b, c, n].
        p: P^T, [b, r, c].

    >>> x = torch.tensor([[[9.0, 0, 0], [0, 2, 0], [0, 0, 2]]])
    >>> u, _ = deflate(x, torch.tensor([[[1.0, 0, 0]]]))
    >>> [round(float(s), 3) for s in torch.linalg.svdvals(u)[0]]
    [2.0, 2.0, 2.0]
    """
    if x.shape[-1] != p.shape[-1]:
        u, following = deflate(x.mT, p)
        return u.mT, following
    r, c = p.shape[-2:]
    z = x @ p.mT
    squares = z.square().sum(-2, keepdim=True)
    rest = (x.square().sum((-2, -1), keepdim=True) - squares.sum(-1, keepdim=True)).clamp(min=0) / (c - r)
    fall = 1 - torch.sqrt((rest + RMS_GUARD) / (squares + RMS_GUARD)).clamp(max=1)
    return x - (z * fall) @ p, _orthonormal(_unit(z.mT @ x) + _KEPT * p)


def _orthonormal(y: Tensor) -> Tensor:
    """Rows that span what those of y [b, r, c] span, the first k what the first k do."""
    y = _unit(y)
    gram = y @ y.mT + _RIDGE * torch.eye(y.shape[-2], dtype=y.dtype, device=y.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky_ex(gram).L, y, upper=False).contiguous()


def _unit(x: Tensor) -> Tensor:
    """Rows brought to norm 1; zeros stay zeros."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + RMS_GUARD)
