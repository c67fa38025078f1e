"""How the weights are cut and put together for the two passes over memory: chunks that stay in a cache.

A chunk is a run of rows of one large tensor, used where it lies, or several small tensors, copied side by side; either
way every operator runs once a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lopt.rules.neuron.form import Form
from lopt.rules.neuron.layout import Layout
from lopt.rules.sharded import Shard


class Run(NamedTuple):
    """Weights of a chunk that are [b, r, c], and the entries of their rows and columns."""

    shape: tuple[int, int, int]
    weights: slice  # of the chunk
    rows: slice  # of the row entries
    columns: slice  # of the column entries


class Chunk(NamedTuple):
    tensors: slice  # of the layout's tensors
    part: slice | None  # of the weights of the only tensor; None: the tensors are whole, and are copied side by side
    runs: tuple[Run, ...]
    size: int  # weights


def chunks_of(layout: Layout, shards: Mapping[str, Shard], limit: int, stop: int) -> list[Chunk]:
    """All weights that this process holds, in the layout's order, in chunks of at most about `limit`.

    Sharded tensors share no chunk with others, and the first `stop` tensors none with those behind.
    """
    chunks: list[Chunk] = []
    for stack in layout.stacks:
        form, names = stack.form, layout.names[stack.tensors]
        n_rows, n_columns = form.batch * form.rows, form.batch * form.columns
        small = n_rows * form.columns <= limit // 4
        for k, name in enumerate(names):
            index, row, column = (
                stack.tensors.start + k,
                stack.rows.start + k * n_rows,
                stack.columns.start + k * n_columns,
            )
            if small and name not in shards:
                _append(chunks, index, _run(form.shape, row, column), limit, index == stop)
                continue
            shard = shards.get(name)
            span = (shard.start, shard.stop, layout.space.shapes[name][0]) if shard else (0, 1, 1)
            weight = 0
            for shape, r, c in _parts(form, *span, limit):
                run = _run(shape, row + r, column + c)
                part = slice(weight, weight + run.weights.stop)
                chunks.append(Chunk(slice(index, index + 1), part, (run,), run.weights.stop))
                weight = part.stop
    return chunks


def _run(shape: tuple[int, int, int], row: int, column: int) -> Run:
    b, r, c = shape
    return Run(shape, slice(0, b * r * c), slice(row, row + b * r), slice(column, column + b * c))


def _parts(form: Form, start: int, stop: int, of: int, limit: int) -> Iterator[tuple[tuple[int, int, int], int, int]]:
    """The positions start to stop, `of` all, of the first axis: pieces [b, r, c], their first row and column entry."""
    batch, rows, columns = form.shape
    if batch * rows == 1:
        step = max(1, limit)
        first, last = start * columns // of, stop * columns // of
        yield from (((1, 1, min(step, last - c)), 0, c) for c in range(first, last, step))
        return
    step = max(1, limit // max(1, columns))
    row, last = start * batch * rows // of, stop * batch * rows // of
    while row < last:
        b, r = divmod(row, rows)
        blocks = min(step, last - row) // rows if r == 0 else 0
        shape = (blocks, rows, columns) if blocks else (1, min(step, last - row, rows - r), columns)
        yield shape, row, b * columns
        row += shape[0] * shape[1]


def _append(chunks: list[Chunk], index: int, run: Run, limit: int, apart: bool) -> None:
    """Puts a whole small tensor behind the last ones if they are small, too; else, or `apart`, into a new chunk."""
    size = run.weights.stop
    last = chunks[-1] if chunks else None
    if apart or last is None or last.part is not None or last.size + size > limit:
        chunks.append(Chunk(slice(index, index + 1), None, (run,), size))
        return
    before = last.runs[-1]
    if before.shape[1:] == run.shape[1:] and (before.rows.stop, before.columns.stop) == (
        run.rows.start,
        run.columns.start,
    ):
        shape = (before.shape[0] + run.shape[0], *run.shape[1:])
        spans = [slice(a.start, b.stop) for a, b in zip(before[2:], run[2:], strict=True)]
        runs = (*last.runs[:-1], Run(shape, slice(before.weights.start, last.size + size), *spans))
    else:
        runs = (*last.runs, run._replace(weights=slice(last.size, last.size + size)))
    chunks[-1] = Chunk(slice(last.tensors.start, index + 1), None, runs, last.size + size)
