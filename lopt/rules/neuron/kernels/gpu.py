"""The two passes on a GPU by Triton's kernels (triton_kernels.py): the methods of `Memory` in passes.py.

A step launches a handful of kernels whatever the number of tensors: these find their weights by a table of addresses.

Legend: P parts, T tensors.
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, util
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lopt.rules.neuron.combine import Plan, brought_to
from lopt.rules.neuron.deflate import SUBSPACE, deflate_in_place
from lopt.rules.neuron.layout import Layout, once_a_layout
from lopt.rules.neuron.passes import KEYS
from lopt.rules.neuron.tokens import MOMENTS
from lopt.rules.rule import Updates
from lopt.rules.sharded import is_distributed

_torch: Any = torch  # the foreach operators have no public names

_READ = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of weights and gradients; an index is a code
_FIELDS = 8
_ROWS, _BLOCK = 16, 32  # a tile: larger ones need more registers than let enough programs run side by side
_SPAN = 128  # numbers that a program adds or scales at a time
_LONGEST = 1 << 17  # columns of a matrix with few rows, beyond which a program would walk too long


class Table(NamedTuple):
    """All that does not change from step to step, on the device."""

    parts: Tensor  # [P, _FIELDS]
    spans: Tensor  # [T, 2]
    segments: Tensor  # [programs, 5]
    beside: int
    names: tuple[str, ...]  # of the tensors of the second pass, the first of the layout
    n_parts: int  # of these tensors
    out: int  # their weights


_ADDRESSES: deque[tuple[np.ndarray, Tensor]] = deque(maxlen=16)


@functools.cache
def kernels(device: torch.device) -> Any:
    """The module of the kernels; None without Triton, or where it cannot compile for this device, with a warning.

    It is not imported before it is needed, since that takes a second.
    """
    if util.find_spec("triton") is None:
        return None
    try:
        found = import_module("lopt.rules.neuron.kernels.triton_kernels")
        span, one = torch.tensor([[0, 1]], device=device), torch.ones(1, device=device)
        total = torch.zeros(1, device=device)
        found.add_squares[(1,)](span, one, total, _SPAN)
    except Exception as error:  # whatever it is that the compiler cannot do here, PyTorch's operators can
        warnings.warn(
            f"The Neuron rule runs without its kernels for {device}: Triton could not make them ({error!r}). "
            "The result is the same and takes longer; LOPT_KERNELS=0 says that this is meant.",
            stacklevel=2,
        )
        return None
    return found


def suits(
    layout: Layout, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]
) -> bool:
    """Whether the kernels can take this step: contiguous; float32 state; gradients of the weights' dtype."""
    if layout.device.type != "cuda" or layout.dtype != torch.float32:
        return False
    for name in layout.names:
        p, g, own = params[name], grads[name], state[name]
        moments = [own[key] for key in (*KEYS, SUBSPACE) if key in own]
        if p.dtype not in _READ or g.dtype != p.dtype or is_distributed(p):
            return False
        if any(x.dtype != torch.float32 for x in moments) or not all(x.is_contiguous() for x in (p, g, *moments)):
            return False
    forms = [stack.form for stack in layout.stacks]
    return all(form.rows >= _ROWS or form.columns <= _LONGEST for form in forms) and kernels(layout.device) is not None


class TritonMemory:
    """As `Memory`, for tensors that `suits` accepts."""

    def __init__(
        self,
        layout: Layout,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Mapping[str, Tensor]],
        stop: int,
    ) -> None:
        self.layout, self._table, names = layout, _table_of(layout, stop), layout.names
        self._params = [params[k] for k in names]
        moments = [[state[k][key] for k in names] for key in KEYS]
        ordered = [[grads[k] for k in names], *moments, [params[k] for k in names]]
        codes = [_READ.index(x.dtype) for x in ordered[0]]
        self._codes = sorted(set(codes))
        self._addresses = _on_device([[x.data_ptr() for x in tensors] for tensors in ordered] + [codes], layout.device)

    def advance(self, gains: Sequence[float]) -> Tensor:
        """The first pass: advances the moments; sums over rows and columns, [MOMENTS, E]."""
        layout, table, run = self.layout, self._table, kernels(self.layout.device)
        sums = torch.zeros(MOMENTS, layout.n_entries, device=layout.device)
        beside = torch.empty(table.beside, device=layout.device)
        about = table.parts, self._addresses, len(layout.names)
        for code in self._codes if len(table.parts) else ():
            tail = run.DTYPES[str(_READ[code])], _FIELDS, _ROWS, _BLOCK
            run.advance[(len(table.parts),)](*about, *gains, sums, layout.n_entries, beside, code, *tail)
        if len(table.segments):
            run.add_parts[(len(table.segments),)](table.segments, beside, sums, layout.n_entries, MOMENTS, _SPAN)
        return sums

    def combine(self, plan: Plan, subspaces: Mapping[str, Tensor]) -> Iterator[Updates]:
        """The second pass: all its updates at once; those that have a subspace are deflated by PyTorch's operators."""
        layout, table, run = self.layout, self._table, kernels(self.layout.device)
        rows, columns, stop = plan.rows.contiguous(), plan.columns.contiguous(), len(table.names)
        out, count = torch.empty(table.out, device=layout.device), (table.n_parts,)
        squares, totals = out.new_empty(table.n_parts), out.new_zeros(stop)
        sized = zip(out.split(layout.sizes[:stop]), self._params[:stop], strict=True)
        directions = [x.view(p.shape) for x, p in sized]
        about = table.parts, self._addresses, len(layout.names)
        numbers = rows, rows.shape[1], columns, columns.shape[1], plan.floor
        if table.n_parts:
            for code in self._codes:
                tail = run.DTYPES[str(_READ[code])], _FIELDS, _ROWS, _BLOCK
                run.combine[count](*about, *numbers, out, squares, code, *tail)
            run.add_squares[(stop,)](table.spans, squares, totals, _SPAN)
            if subspaces:
                deflate_in_place(layout, slice(0, stop), directions, self._params, subspaces)
                others = layout.n_others
                totals[others:] = torch.stack(_torch._foreach_norm(directions[others:])).square()
            factors = brought_to(plan.scales[:stop], totals * layout.inverse_size[layout.n_entries :][:stop])
            run.scale[count](table.parts, out, factors, _FIELDS, 8 * _SPAN)
        yield Updates(table.names, directions)


def _on_device(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The table of addresses; copied without waiting, and not at all if it is one of the last ones."""
    table = np.array(rows, dtype=np.int64)
    for known, there in _ADDRESSES:
        if there.device == device and np.array_equal(known, table):
            return there
    here = torch.from_numpy(table.copy())
    there = here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here
    _ADDRESSES.append((table, there))
    return there


@once_a_layout
def _table_of(layout: Layout, stop: int) -> Table:
    """The second pass is for the first `stop` tensors."""
    parts: list[tuple[int, ...]] = []
    spans, segments, beside, out = [], [], 0, 0
    for stack in layout.stacks:
        batch, rows, columns = stack.form.shape
        for k, index in enumerate(range(stack.tensors.start, stack.tensors.stop)):
            row, column = stack.rows.start + k * batch * rows, stack.columns.start + k * batch * columns
            spans.append((len(parts), batch * -(-rows // _ROWS) if columns else 0))
            for b in range(batch if columns else 0):
                count = -(-rows // _ROWS)
                where = layout.n_rows + column + b * columns
                segments += [(beside, count, columns, c, where + c) for c in range(0, columns if count else 0, _SPAN)]
                for r in range(0, rows, _ROWS):
                    first = (b * rows + r) * columns
                    about = min(_ROWS, rows - r), columns, first, row + b * rows + r, column + b * columns
                    parts.append((index, *about, beside, out + first))
                    beside += MOMENTS * columns
            out += batch * rows * columns

    def tensor(x: Sequence[Sequence[int]], width: int) -> Tensor:
        return torch.tensor(x, dtype=torch.int64).reshape(-1, width).to(layout.device)

    n_parts = sum(count for _, count in spans[:stop])
    return Table(
        tensor(parts, _FIELDS),
        tensor(spans, 2),
        tensor(segments, 5),
        beside,
        layout.names[:stop],
        n_parts,
        sum(layout.sizes[:stop]),
    )
