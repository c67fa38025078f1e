"""The two passes as pure functions over all weights: the reference, and what runs in a population.

The tensors of one form run as one, so the number of operators grows with that of the forms. Tensors of different forms
are not joined, so a compiler makes one loop for each form, pass and sum.

Legend: E entries without those of the tensors, [b, r, c] a form times the tensors that have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.neuron.combine import Plan, brought_to
from lopt.rules.neuron.layout import Layout, Stack


class Advanced(NamedTuple):
    """What belongs to the weights of a stack after the first pass, [b, r, c] each."""

    g: Tensor
    m: Tensor
    s: Tensor
    v: Tensor
    w: Tensor

    def products(self) -> tuple[Tensor, ...]:
        """What is summed over rows and columns: MOMENTS tensors."""
        g, m, s, v, w = self
        return g * g, m * m, w * w, v, g * m, m * s, s * w, m


def stacked(layout: Layout, stack: Stack, tensors: Sequence[Tensor]) -> Tensor:
    """The tensors of a stack as one: [b, r, c]."""
    parts = [x.to(layout.dtype).reshape(stack.form.shape) for x in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def unstacked(layout: Layout, stack: Stack, x: Tensor) -> list[Tensor]:
    """The inverse of `stacked`: each tensor in its shape."""
    names, shapes = layout.names[stack.tensors], layout.space.shapes
    parts = x.reshape(stack.n_tensors, *stack.form.shape).unbind(0)
    return [part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)]


def advance(g: Tensor, w: Tensor, old: Sequence[Tensor], gains: Sequence[float]) -> Advanced:
    """g, w and the moments m, s, v -> the same with the next moments. All [b, r, c]."""
    m, s, v = (torch.lerp(x, new, gain) for x, new, gain in zip(old, (g, g, g * g), gains, strict=True))
    return Advanced(g, m, s, v, w)


def sums_of(stacks: Iterable[Sequence[Tensor]]) -> Tensor:
    """Sums over rows and columns of each stack's products, [b, r, c] each: [MOMENTS, E]."""
    rows, columns = [], []
    for products in stacks:
        rows.append(torch.stack([x.sum(-1) for x in products]).flatten(1))
        columns.append(torch.stack([x.sum(-2) for x in products]).flatten(1))
    return torch.cat(rows + columns, 1)


def combine(layout: Layout, stack: Stack, plan: Plan, x: Advanced) -> Tensor:
    """The updates of a stack, not yet of RMS 1: the formula of combine.py. [b, r, c]."""
    b, r, c = x.g.shape
    a = [row.reshape(b, r, 1) for row in plan.rows[:, stack.rows].unbind(0)]
    d = [column.reshape(b, 1, c) for column in plan.columns[:, stack.columns].unbind(0)]
    adaptive = (x.g * a[0] + x.m * a[1] + x.s * a[2]) * torch.rsqrt(x.v * a[6] + plan.floor)
    return d[1] * (adaptive + x.w * a[3] + x.m * (a[4] + a[5] * d[0]) + a[7]) + d[2]


def scaled(layout: Layout, stack: Stack, plan: Plan, u: Tensor) -> Tensor:
    """Each tensor of a stack brought to its learned RMS."""
    inverse = layout.inverse_size[layout.n_entries :][stack.tensors]
    squares = u.square().sum((-2, -1)).reshape(stack.n_tensors, stack.form.batch).sum(-1)
    factors = brought_to(plan.scales[stack.tensors], squares * inverse)
    return u * factors.unsqueeze(1).expand(stack.n_tensors, stack.form.batch).reshape(len(u), 1, 1)
