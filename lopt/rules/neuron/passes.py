"""The two passes over memory, in place: advance the moments and take sums; combine and hand out.

Each pass goes chunk by chunk (see chunks.py). `advance` and `combine` do the arithmetic of a chunk on plain tensors, so
that a kernel can stand in for either.

Legend: n weights of a chunk, E entries without those of the tensors, [b, r, c] the form of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.rules.neuron.chunks import Chunk, Run, chunks_of
from lopt.rules.neuron.combine import COLUMNS, ROWS, Plan, brought_to
from lopt.rules.neuron.deflate import deflate_in_place
from lopt.rules.neuron.layout import Layout
from lopt.rules.neuron.tokens import GG, GM, MM, MOMENTS, MS, SW, WW, M, V
from lopt.rules.rule import Updates
from lopt.rules.sharded import add_over, counts_here, distribute_like, local, one_group, shard_of

_torch: Any = torch  # the foreach operators have no public names

KEYS = ("momentum", "slow_momentum", "second_moment")


def _chunk_size(device: torch.device) -> int:
    """Weights of a chunk: on a CPU few enough that what belongs to them stays in the second cache of a core, and that
    PyTorch starts no threads, which would cost more than they save."""
    return 1 << 22 if device.type == "cuda" else 32_768


def advance(
    g: Tensor, m: Tensor, s: Tensor, v: Tensor, w: Tensor, gains: Sequence[float], products: Sequence[Tensor]
) -> None:
    """Advances m, s and v in place; writes the MOMENTS products that are summed. All [n]."""
    m.lerp_(g, gains[0])
    s.lerp_(g, gains[1])
    torch.mul(g, g, out=products[GG])
    v.lerp_(products[GG], gains[2])
    products[V].copy_(v)
    products[M].copy_(m)
    for index, a, b in ((MM, m, m), (WW, w, w), (GM, g, m), (MS, m, s), (SW, s, w)):
        torch.mul(a, b, out=products[index])


def combine(
    tensors: Sequence[Tensor],
    a: Sequence[Tensor],
    c: Sequence[Tensor],
    floor: float,
    out: Tensor,
    scratch: Tensor,
) -> None:
    """Writes the update, not yet of RMS 1, into `out`: the formula of combine.py.

    Args:
        tensors: g, m, s, v, w.
        a, c: numbers of rows and columns, that broadcast against these; floor: ε².
    """
    g, m, s, v, w = tensors
    torch.mul(v, a[6], out=scratch).add_(floor).rsqrt_()
    torch.mul(g, a[0], out=out).addcmul_(s, a[2]).addcmul_(m, a[1]).mul_(scratch)
    torch.mul(a[5], c[0], out=scratch).add_(a[4])
    out.addcmul_(m, scratch).addcmul_(w, a[3]).add_(a[7]).mul_(c[1]).add_(c[2])


class Memory:
    """The weights that this process holds, with what belongs to them, and the buffers of a step.

    Args:
        stop: the second pass is for so many tensors, the first of the layout.
    """

    def __init__(
        self,
        layout: Layout,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Mapping[str, Tensor]],
        stop: int,
    ) -> None:
        self.layout, self._stop = layout, stop
        names, dtype = layout.names, layout.dtype
        self._shards = {k: shard for k in names if (shard := shard_of(params[k])) is not None}
        self._group = one_group(self._shards)
        self._params = [params[k] for k in names]
        self._moments = [[local(state[k][key]) for k in names] for key in KEYS]
        read = [[local(x[k]).reshape(-1) for k in names] for x in (grads, params)]
        # Moments of another dtype or order of memory are worked on in a copy, and written back.
        moments = [[x.to(dtype).reshape(-1) for x in tensors] for tensors in self._moments]
        self._flat = [read[0], *moments, read[1]]
        self._chunks = chunks_of(layout, self._shards, _chunk_size(layout.device), stop)
        self._largest = max((chunk.size for chunk in self._chunks), default=0)
        self._beside = self._new(5 * max((chunk.size for chunk in self._chunks if chunk.part is None), default=0))

    def _new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.layout.dtype, device=self.layout.device)

    def _tensors(self, chunk: Chunk) -> Sequence[Tensor]:
        """g, m, s, v, w of a chunk, [n] each."""
        dtype = self.layout.dtype
        if chunk.part is not None:
            return [tensors[chunk.tensors.start][chunk.part].to(dtype) for tensors in self._flat]
        copies = self._beside[: 5 * chunk.size].view(5, chunk.size).unbind(0)
        for copy, tensors in zip(copies, self._flat, strict=True):
            torch.cat([x.to(dtype) for x in tensors[chunk.tensors]], out=copy)
        return copies

    def advance(self, gains: Sequence[float]) -> Tensor:
        """The first pass: advances the moments; sums over rows and columns, [MOMENTS, E]."""
        layout = self.layout
        sums = torch.zeros(MOMENTS, layout.n_entries, dtype=layout.dtype, device=layout.device)
        scratch = self._new(MOMENTS * self._largest)
        for chunk in self._chunks:
            products = scratch[: MOMENTS * chunk.size].view(MOMENTS, chunk.size)
            g, m, s, v, w = tensors = self._tensors(chunk)
            advance(g, m, s, v, w, gains, products.unbind(0))
            if chunk.part is None:
                for copy, moments in zip(tensors[1:4], self._flat[1:4], strict=True):
                    _torch._foreach_copy_(moments[chunk.tensors], copy.split(layout.sizes[chunk.tensors]))
            if counts_here(self._shards.get(layout.names[chunk.tensors.start]), self._group):
                for run in chunk.runs:
                    add_sums(sums, products[:, run.weights], run, layout.n_rows)
        self._write_back()
        add_over([sums], self._group)
        return sums

    def _write_back(self) -> None:
        for tensors, flat in zip(self._moments, self._flat[1:4], strict=True):
            for x, y in zip(tensors, flat, strict=True):
                if x.data_ptr() != y.data_ptr():
                    x.copy_(y.view(x.shape))

    def combine(self, plan: Plan, subspaces: Mapping[str, Tensor]) -> Iterator[Updates]:
        """The second pass: the updates of one tensor, or of a chunk of small ones, after the other.

        Args:
            subspaces: of the tensors whose updates are deflated; advanced.
        """
        layout, names = self.layout, self.layout.names
        members: dict[int, list[Chunk]] = {}
        for chunk in self._chunks:
            members.setdefault(chunk.tensors.start, []).append(chunk)
        held = [flat.numel() for flat in self._flat[0][: self._stop]]
        out = self._new(max([self._largest, *held], default=0))
        scratch, spread = self._new(self._largest), self._new((ROWS + COLUMNS) * self._beside.numel() // 5)
        start = 0
        while start < self._stop:
            chunks = members.get(start, [])
            tensors = chunks[0].tensors if chunks else slice(start, start + 1)
            used = sum(chunk.size for chunk in chunks)
            for chunk, part in zip(chunks, out[:used].split([chunk.size for chunk in chunks]), strict=True):
                self._combine(chunk, plan, part, scratch, spread)
            parts = out[:used].split(held[tensors])
            directions = [x.view(local(p).shape) for x, p in zip(parts, self._params[tensors], strict=True)]
            deflate_in_place(layout, tensors, directions, self._params[tensors], subspaces)
            squares = torch.stack(_torch._foreach_norm(parts)).square()
            add_over([squares] if names[start] in self._shards else [], self._group)
            factors = brought_to(plan.scales[tensors], squares * layout.inverse_size[layout.n_entries :][tensors])
            pairs = zip(directions, self._params[tensors], strict=True)
            yield Updates(names[tensors], [distribute_like(x, p) for x, p in pairs], factors.unbind(0))
            start = tensors.stop

    def _combine(self, chunk: Chunk, plan: Plan, out: Tensor, scratch: Tensor, spread: Tensor) -> None:
        tensors, scratch = self._tensors(chunk), scratch[: chunk.size]
        if chunk.part is not None:
            (run,) = chunk.runs
            b, r, c = run.shape
            rows, columns = (
                plan.rows[:, run.rows].view(ROWS, b, r, 1),
                plan.columns[:, run.columns].view(COLUMNS, b, 1, c),
            )
            tensors, out, scratch = [x.view(run.shape) for x in tensors], out.view(run.shape), scratch.view(run.shape)
            combine(tensors, rows.unbind(0), columns.unbind(0), plan.floor, out, scratch)
            return
        everywhere = spread[: (ROWS + COLUMNS) * chunk.size].view(ROWS + COLUMNS, chunk.size)
        for run in chunk.runs:
            b, r, c = run.shape
            there = everywhere[:, run.weights].view(ROWS + COLUMNS, b, r, c)
            there[:ROWS] = plan.rows[:, run.rows].view(ROWS, b, r, 1)
            there[ROWS:] = plan.columns[:, run.columns].view(COLUMNS, b, 1, c)
        numbers = everywhere.unbind(0)
        combine(tensors, numbers[:ROWS], numbers[ROWS:], plan.floor, out, scratch)


def add_sums(sums: Tensor, products: Tensor, run: Run, n_rows: int) -> None:
    """Adds the sums of products [MOMENTS, n] over the rows and columns of a run to those of all entries."""
    b, r, c = run.shape
    x = products.view(MOMENTS, b, r, c)
    sums[:, run.rows] += x.sum(-1).view(MOMENTS, b * r)
    sums[:, n_rows + run.columns.start : n_rows + run.columns.stop] += x.sum(-2).view(MOMENTS, b * c)
