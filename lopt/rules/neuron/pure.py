"""The two passes as pure functions over all weights at once: the reference, and what runs in a population.

All tensors lie one after the other in one row, so elementwise operators run once whatever the number of tensors; sums
and broadcasts run once for each form.

Legend: n weights in all, E entries without those of the tensors, [b, r, c] a form times the tensors that have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lopt.rules.neuron.combine import COLUMNS, ROWS, Plan, brought_to
from lopt.rules.neuron.layout import Layout, Stack
from lopt.rules.neuron.orthogonalise import orthogonalise
from lopt.rules.neuron.tokens import MOMENTS


def flatten(layout: Layout, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1).to(layout.dtype) for x in tensors])


def advance(g: Tensor, w: Tensor, old: Sequence[Tensor], gains: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """g, w and the moments m, s, v, [n] each -> the next g, m, s, w [4, n]; v [n]; the products to sum [MOMENTS, n]."""
    square = g * g
    m, s, v = (torch.lerp(x, new, gain) for x, new, gain in zip(old, (g, g, square), gains, strict=True))
    x = torch.stack([g, m, s, w])
    return x, v, torch.cat([square[None], x[1::2].square(), v[None], x[:-1] * x[1:], m[None]])


def sums_of(layout: Layout, products: Tensor) -> Tensor:
    """Sums of products over rows and columns: [MOMENTS, n] -> [MOMENTS, E]."""
    rows, columns = [], []
    for stack in layout.stacks:
        b, r, c = _shape(stack)
        x = products[:, stack.weights].reshape(MOMENTS, b, r, c)
        rows.append(x.sum(-1).reshape(MOMENTS, b * r))
        columns.append(x.sum(-2).reshape(MOMENTS, b * c))
    return torch.cat(rows + columns, 1)


def combine(layout: Layout, plan: Plan, x: Tensor, v: Tensor, orthogonal: bool) -> list[Tensor]:
    """The formula of combine.py, brought to its RMS; x [4, n] is g, m, s, w. The updates, [size] each."""
    a, c = _spread(layout, plan)
    root = torch.rsqrt(v * a[6] + plan.floor)
    terms = x[:3] * a[:3]
    if orthogonal:
        base = a[1] * _base(layout, x[1] * root, x[1])
        adaptive = (terms[0] + terms[2]) * root + base
    else:
        adaptive = terms.sum(0) * root
    u = c[1] * (adaptive + x[3] * a[3] + x[1] * (a[4] + a[5] * c[0]) + a[7]) + c[2]
    squares = u * u
    sums = [_by_tensor(squares, stack).sum(-1) for stack in layout.stacks]
    factors = brought_to(plan.scales, torch.cat(sums) * layout.inverse_size[layout.n_entries :])
    updates = []
    for stack in layout.stacks:
        updates += (_by_tensor(u, stack) * factors[stack.tensors].unsqueeze(-1)).unbind(0)
    return updates


def orthogonal_base(m: Tensor) -> Tensor:
    """The orthogonalised momentum with an RMS of about 1: [*, r, c]."""
    return orthogonalise(m) * max(m.shape[-2:]) ** 0.5


def _base(layout: Layout, adaptive: Tensor, m: Tensor) -> Tensor:
    """The base direction of all weights [n]: the orthogonalised momentum in hidden matrices, else m / sqrt(v)."""
    return torch.cat(
        [
            orthogonal_base(m[stack.weights].reshape(_shape(stack))).reshape(-1)
            if stack.form.hidden
            else adaptive[stack.weights]
            for stack in layout.stacks
        ]
    )


def _spread(layout: Layout, plan: Plan) -> tuple[Tensor, Tensor]:
    """The numbers of rows and of columns at each weight: [ROWS, n] and [COLUMNS, n]."""
    over_rows, over_columns = [], []
    for stack in layout.stacks:
        b, r, c = _shape(stack)
        x = plan.rows[:, stack.rows].reshape(ROWS, b, r, 1)
        y = plan.columns[:, stack.columns].reshape(COLUMNS, b, 1, c)
        over_rows.append(x.expand(ROWS, b, r, c).reshape(ROWS, b * r * c))
        over_columns.append(y.expand(COLUMNS, b, r, c).reshape(COLUMNS, b * r * c))
    return torch.cat(over_rows, 1), torch.cat(over_columns, 1)


def _by_tensor(x: Tensor, stack: Stack) -> Tensor:
    """The weights of a stack, [tensors, size]."""
    return x[stack.weights].reshape(_count(stack), math.prod(stack.form.shape))


def _count(stack: Stack) -> int:
    return stack.tensors.stop - stack.tensors.start


def _shape(stack: Stack) -> tuple[int, int, int]:
    batch, rows, columns = stack.form.shape
    return _count(stack) * batch, rows, columns
