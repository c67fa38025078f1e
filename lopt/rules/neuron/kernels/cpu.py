"""The two passes on a CPU by compiled kernels (native.py): the methods of `Memory` in passes.py, a call each a pass.

Legend: E entries without those of the tensors, T tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lopt.rules.neuron.combine import Plan, brought_to
from lopt.rules.neuron.deflate import SUBSPACE
from lopt.rules.neuron.kernels import native
from lopt.rules.neuron.layout import Layout, Stack, once_a_layout
from lopt.rules.neuron.passes import KEYS
from lopt.rules.neuron.tokens import MOMENTS
from lopt.rules.rule import Updates
from lopt.rules.sharded import is_distributed

_READ = (torch.float32, torch.bfloat16)  # dtypes of weights and gradients that the kernels read
_PART = 1 << 17  # weights of a part, at least: what a thread takes at a time
_PART_ROWS = 64  # rows of a part, at least: so much fewer are its sums over rows than its weights
_FLOAT = 4  # bytes
_GROUP = 1 << 20  # weights whose updates are held at once, unless one tensor has more


class Group(NamedTuple):
    """Tensors whose updates are made in one call."""

    tensors: slice
    parts: slice
    size: int  # weights


class Table(NamedTuple):
    """All that does not change from step to step."""

    parts: np.ndarray  # [parts, 9]: as `Part` in passes.cpp
    beside: int  # numbers that parts sum beside the result
    groups: tuple[Group, ...]
    matrices: dict[int, np.ndarray]  # of each hidden tensor: [batch, 6], as `Matrix` in deflate.h, without addresses


def suits(
    layout: Layout, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]
) -> bool:
    """Whether the kernels can take this step: float32 state; weights and gradients of one dtype that they read."""
    if layout.device.type != "cpu" or layout.dtype != torch.float32:
        return False
    for name in layout.names:
        p, g, own = params[name], grads[name], state[name]
        moments = [own[key] for key in (*KEYS, SUBSPACE) if key in own]
        if p.dtype not in _READ or g.dtype != p.dtype or is_distributed(p) or p.is_neg() or g.is_neg():
            return False
        if any(x.dtype != torch.float32 or not x.is_contiguous() for x in moments):
            return False
    return native.library() is not None


class NativeMemory:
    """As `Memory`, for tensors that `suits` accepts."""

    def __init__(
        self,
        layout: Layout,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Mapping[str, Tensor]],
        stop: int,
    ) -> None:
        self.layout, self._table = layout, _table_of(layout, stop)
        library = native.library()
        assert library is not None
        self._library, names = library, layout.names
        self._shapes = [params[k].shape for k in names]
        self._held = [[x[k].contiguous() for k in names] for x in (grads, params)]
        moments = [[state[k][key] for k in names] for key in KEYS]
        ordered = [self._held[0], *moments, self._held[1]]
        kinds = [x.dtype == torch.bfloat16 for x in self._held[0]]
        self._pointers = np.array([[x.data_ptr() for x in tensors] for tensors in ordered] + [kinds], dtype=np.int64)
        self._threads = torch.get_num_threads()

    def advance(self, gains: Sequence[float]) -> Tensor:
        """The first pass: advances the moments; sums over rows and columns, [MOMENTS, E]."""
        layout, parts, n_beside = self.layout, self._table.parts, self._table.beside
        sums = torch.zeros(MOMENTS, layout.n_entries, dtype=torch.float32, device=layout.device)
        beside = torch.zeros(n_beside, dtype=torch.float32, device=layout.device)
        self._library.lopt_advance(
            *self._about(parts),
            (ctypes.c_float * len(gains))(*gains),
            sums.data_ptr(),
            layout.n_rows,
            layout.n_entries,
            beside.data_ptr(),
            self._threads,
        )
        return sums

    def combine(self, plan: Plan, subspaces: Mapping[str, Tensor]) -> Iterator[Updates]:
        """The second pass: the updates of one group of tensors after the other; some are deflated, see `Memory`."""
        layout, parts, groups = self.layout, self._table.parts, self._table.groups
        rows, columns = plan.rows.contiguous(), plan.columns.contiguous()
        largest = max((group.size for group in groups), default=0)
        out = torch.empty(largest, dtype=torch.float32, device=layout.device)
        squares = torch.zeros(len(layout.names), dtype=torch.float32, device=layout.device)
        inverse = layout.inverse_size[layout.n_entries :]
        for group in groups:
            self._library.lopt_combine(
                *self._about(parts[group.parts]),
                rows.data_ptr(),
                rows.shape[1],
                columns.data_ptr(),
                columns.shape[1],
                plan.floor,
                out.data_ptr(),
                squares.data_ptr(),
                self._threads,
            )
            chosen = group.tensors
            self._deflate(group, out, subspaces, squares)
            factors = brought_to(plan.scales[chosen], squares[chosen] * inverse[chosen])
            directions = out[: group.size].split(layout.sizes[chosen])
            directions = [x.view(shape) for x, shape in zip(directions, self._shapes[chosen], strict=True)]
            yield Updates(layout.names[chosen], directions, factors.unbind(0))

    def _deflate(self, group: Group, out: Tensor, subspaces: Mapping[str, Tensor], squares: Tensor) -> None:
        """Deflates the updates of a group that have a subspace; their squares are then those after it."""
        chosen: list[np.ndarray] = []
        for index in range(max(group.tensors.start, self.layout.n_others), group.tensors.stop):
            p = subspaces.get(self.layout.names[index])
            if p is not None:
                own = self._table.matrices[index].copy()
                own[:, 0] += out.data_ptr()
                own[:, 1] = own[:, 1] * p.shape[1] + p.data_ptr()
                own[:, 4] = p.shape[1]
                chosen.append(own)
        if chosen:
            matrices = np.concatenate(chosen)
            self._library.lopt_deflate(matrices.ctypes.data, len(matrices), squares.data_ptr(), self._threads)

    def _about(self, parts: np.ndarray) -> tuple[int, int, int, int]:
        return parts.ctypes.data, len(parts), self._pointers.ctypes.data, len(self.layout.names)


@once_a_layout
def _table_of(layout: Layout, stop: int) -> Table:
    """The groups are of the first `stop` tensors."""
    parts: list[tuple[int, ...]] = []
    groups, beside, group = [], 0, Group(slice(0, 0), slice(0, 0), 0)
    matrices: dict[int, np.ndarray] = {}
    for stack in layout.stacks:
        batch, rows, columns = stack.form.shape
        n_rows, size = batch * rows, batch * rows * columns
        step = max(_PART_ROWS, -(-_PART // max(1, columns)))
        for k, index in enumerate(range(stack.tensors.start, stack.tensors.stop)):
            if index == stop or (group.size and group.size + size > _GROUP):
                groups.append(group)
                group = Group(slice(index, index), slice(len(parts), len(parts)), 0)
            about = rows, columns, stack.rows.start + k * n_rows, stack.columns.start + k * batch * columns
            if stack.hidden:
                matrices[index] = _matrices(stack, index, group.size)
            for first in range(0, n_rows if columns else 0, step):
                last = min(n_rows, first + step)
                alone = step >= n_rows
                parts.append((index, first, last, *about, -1 if alone else beside, group.size))
                beside += 0 if alone else MOMENTS * columns * ((last - 1) // rows - first // rows + 1)
            tensors, own = slice(group.tensors.start, index + 1), slice(group.parts.start, len(parts))
            group = Group(tensors, own, group.size + size)
    table = np.array(parts, dtype=np.int64).reshape(-1, 9)
    return Table(table, beside, tuple(group for group in (*groups, group) if group.tensors.stop <= stop), matrices)


def _matrices(stack: Stack, index: int, start: int) -> np.ndarray:
    """Of a tensor whose update begins at `start`: offsets in place of the addresses, those in P^T of one row of it."""
    batch, rows, columns = stack.form.shape
    every = np.arange(batch) * _FLOAT
    x, p = start * _FLOAT + every * rows * columns, every * min(rows, columns)
    return np.stack(np.broadcast_arrays(x, p, rows, columns, 0, index), 1).astype(np.int64)
