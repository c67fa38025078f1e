"""What is known of the permutations of a tensor: a term for each axis; and how moving entries about moves the terms.

A tensor's labels are one `Term` an axis, unless the terms of the other axes differ from place to place along one axis:
query, key and value stacked along an axis of 3 have heads and channels of their own. Then the labels are *blocks* along
that axis, each with labels of its own. Movements (select, slice, transpose, concatenate, view) keep blocks; every other
operator sees the axis whole (`terms`), which ties the blocks to one another: always sound.

Which axes are worth blocks shows only when they are sliced. So an axis notes where it came from (its origin), slicing
it reports the origin, and the next pass of the trace makes blocks there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from lopt.tracing.algebra import (
    Term,
    concatenation,
    cut,
    find,
    fix,
    fixed,
    free,
    is_fixed,
    leaves,
    product,
    split,
    unify,
)

LARGEST_BLOCKED_AXIS = 256  # longer axes are not stacks of a few things
Shape: TypeAlias = tuple[int, ...]
Origin: TypeAlias = object


class Outer(NamedTuple):
    """The origin of an axis that a view split off as an outer factor: any slice of it makes blocks. An axis that is
    whole from the start is cut by slices, and makes blocks only where single entries are taken."""

    name: object


class Labels(NamedTuple):
    """The terms of a tensor's axes, or blocks along one of them.

    `axes` are the terms; with blocks, `along` is the axis they divide, `blocks` their labels, and `axes` is empty.
    """

    axes: tuple[Term, ...] = ()
    along: int = -1
    blocks: tuple[Labels, ...] = ()

    @property
    def shape(self) -> Shape:
        if not self.blocks:
            return tuple(find(term).size for term in self.axes)
        first = self.blocks[0].shape
        along = sum(block.shape[self.along] for block in self.blocks)
        return (*first[: self.along], along, *first[self.along + 1 :])


def fresh(shape: Iterable[int], origin: Callable[[int], Origin] | None = None, blocked: Iterable[int] = ()) -> Labels:
    """Free labels; `blocked` are the axes that are divided into blocks of one entry (the first of them is)."""
    shape = tuple(shape)
    for axis in blocked:
        one = (*shape[:axis], 1, *shape[axis + 1 :])
        return Labels(along=axis, blocks=tuple(fresh(one) for _ in range(shape[axis])))
    labels = Labels(tuple(free(size) for size in shape))
    if origin is not None:
        for axis, term in enumerate(labels.axes):
            _note_origin(term, origin(axis))
    return labels


def constant(shape: Iterable[int], reason: object) -> Labels:
    """Labels of a tensor that nothing permutes."""
    return Labels(tuple(fixed(size, reason) for size in shape))


def terms(labels: Labels, reason: object) -> tuple[Term, ...]:
    """One term an axis; blocks are tied to one another."""
    if not labels.blocks:
        return labels.axes
    blocks = [terms(block, reason) for block in labels.blocks]
    for block, axis in itertools.product(blocks[1:], range(len(blocks[0]))):
        if axis != labels.along:
            unify(blocks[0][axis], block[axis], reason)
    axes = list(blocks[0])
    axes[labels.along] = concatenation(block[labels.along] for block in blocks)
    return tuple(axes)


def agree(labels: Labels) -> bool:
    """Whether the blocks say no more than one term an axis would."""
    columns = zip(*(block.axes for block in labels.blocks), strict=True)
    return all(same(column) for axis, column in enumerate(columns) if axis != labels.along)


def all_terms(labels: Labels) -> Iterable[Term]:
    """Every term of the labels, block by block."""
    yield from labels.axes
    for block in labels.blocks:
        yield from all_terms(block)


# --- movements -------------------------------------------------------------------------------------------------------


def permute(labels: Labels, order: Sequence[int]) -> Labels:
    """Axis i of the result is axis order[i]."""
    if labels.blocks:
        blocks = tuple(permute(block, order) for block in labels.blocks)
        return Labels(along=list(order).index(labels.along), blocks=blocks)
    return Labels(tuple(labels.axes[axis] for axis in order))


def insert(labels: Labels, axis: int) -> Labels:
    """A new axis of one entry before `axis`."""
    if labels.blocks:
        along = labels.along + (axis <= labels.along)
        return Labels(along=along, blocks=tuple(insert(block, axis) for block in labels.blocks))
    return Labels((*labels.axes[:axis], fixed(1, "a single entry"), *labels.axes[axis:]))


def drop(labels: Labels, axis: int) -> Labels:
    """Without an axis of one entry."""
    if not labels.blocks:
        return Labels(labels.axes[:axis] + labels.axes[axis + 1 :])
    if axis == labels.along:  # one entry, so one block that is not empty
        return drop(next(block for block in labels.blocks if block.shape[axis]), axis)
    along = labels.along - (axis < labels.along)
    return Labels(along=along, blocks=tuple(drop(block, axis) for block in labels.blocks))


def narrow(labels: Labels, axis: int, start: int, length: int, reason: object) -> tuple[Labels, set[Origin]]:
    """`length` entries of an axis, and the origins of what was sliced."""
    if labels.shape[axis] == length:
        return labels, set()
    if labels.blocks:
        return _narrow_blocks(labels, axis, start, length, reason)
    term = labels.axes[axis]
    origins = {origin for origin in _origins(term) if length == 1 or isinstance(origin, Outer)}
    middle, _ = cut(cut(term, start, reason)[1], length, reason)
    return Labels((*labels.axes[:axis], middle, *labels.axes[axis + 1 :])), origins


def _narrow_blocks(labels: Labels, axis: int, start: int, length: int, reason: object) -> tuple[Labels, set[Origin]]:
    pieces, origins = [], set()
    for block in labels.blocks:
        if axis == labels.along:
            first, last = max(0, start), min(block.shape[axis], start + length)
            start -= block.shape[axis]
            if last <= first:
                continue
            piece, found = narrow(block, axis, first, last - first, reason)
        else:
            piece, found = narrow(block, axis, start, length, reason)
        pieces.append(piece)
        origins |= found
    if not pieces:  # nothing is left of it
        return narrow(labels.blocks[0], axis, 0, 0, reason)
    if len(pieces) == 1:
        return pieces[0], origins
    return Labels(along=labels.along, blocks=tuple(pieces)), origins


def stride(labels: Labels, axis: int, step: int, reason: object) -> Labels:
    """Every `step`-th entry of an axis: the outer factor, where the steps fill it."""
    axes = list(terms(labels, reason))
    size = find(axes[axis]).size
    pair = split(axes[axis], size // step, reason) if size % step == 0 else None
    if pair is None:
        fix(axes[axis], reason)
        axes[axis] = fixed(-(-size // step), reason)
    else:
        fix(pair[1], reason)
        axes[axis] = pair[0]
    return Labels(tuple(axes))


def join(parts: Sequence[Labels], axis: int) -> Labels:
    """One after the other along an axis; blocks, unless the other axes agree already."""
    parts = [part for part in parts if part.shape[axis]] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    if not any(part.blocks for part in parts):
        columns = list(zip(*(part.axes for part in parts), strict=True))
        if all(same(column) for other, column in enumerate(columns) if other != axis):
            axes = list(parts[0].axes)
            axes[axis] = concatenation(columns[axis])
            return Labels(tuple(axes))
    return Labels(along=axis, blocks=tuple(parts))


def same(column: Sequence[Term]) -> bool:
    """Whether the terms are one, or nothing permutes any of them."""
    first = find(column[0])
    return all(find(term) is first or (is_fixed(term) and is_fixed(first)) for term in column)


def expand(labels: Labels, shape: Shape, reason: object) -> Labels:
    """Axes of one entry repeated to `shape`; what is repeated is alike everywhere, so the new axes are free."""
    new = len(shape) - len(labels.shape)
    for _ in range(new):
        labels = insert(labels, 0)
    repeated = [axis for axis, (old, size) in enumerate(zip(labels.shape, shape, strict=True)) if old != size]
    if labels.blocks and labels.along in repeated:
        labels = Labels(terms(labels, reason))

    def replace(part: Labels) -> Labels:
        if part.blocks:
            return Labels(along=part.along, blocks=tuple(map(replace, part.blocks)))
        return Labels(tuple(free(shape[a]) if a in repeated else term for a, term in enumerate(part.axes)))

    return replace(labels)


# --- views -----------------------------------------------------------------------------------------------------------


def reshape(
    labels: Labels, shape: Shape, origin: Callable[[int], Origin], wanted: set[Origin], reason: object
) -> Labels:
    """The same entries in row-major order under another shape.

    Args:
        origin: names the axis i of the result; noted on the axes that are split off others.
        wanted: the origins that become blocks.
    """
    old = labels.shape
    if old == shape:
        return labels
    if 0 in shape:
        return constant(shape, "no entries")
    if labels.blocks:
        kept = _kept_axis(old, shape, labels.along)
        merged = _merged_axis(old, shape, labels.along)
        if merged is not None:  # the products of the blocks, one after the other
            rest = shape[merged] // old[labels.along]
            sizes = [(*shape[:merged], b.shape[labels.along] * rest, *shape[merged + 1 :]) for b in labels.blocks]
            pairs = zip(labels.blocks, sizes, strict=True)
            return join([reshape(block, size, origin, wanted, reason) for block, size in pairs], merged)
        if kept is None:
            return reshape(Labels(terms(labels, reason)), shape, origin, wanted, reason)
        sizes = [(*shape[:kept], block.shape[labels.along], *shape[kept + 1 :]) for block in labels.blocks]
        pairs = zip(labels.blocks, sizes, strict=True)
        moved = tuple(reshape(block, size, origin, wanted, reason) for block, size in pairs)
        return Labels(along=kept, blocks=moved)
    runs: list[list[Term]] = []
    blocks: list[list[Term]] = []
    along = place = -1
    for old_axes, new_axes in matched_axes(old, shape):
        whole = product(labels.axes[axis] for axis in old_axes)
        sizes, names = [shape[axis] for axis in new_axes], [origin(axis) for axis in new_axes]
        divided = next((i for i, name in enumerate(names[:-1]) if Outer(name) in wanted), None)
        if divided is not None and not blocks:
            blocks = _divide_into_blocks(whole, sizes, divided, names, reason)
            along, place = new_axes.start + divided, len(runs)
            runs.append([])
        else:
            runs.append(_divide(whole, sizes, names, reason))
    if not blocks:
        return Labels(tuple(itertools.chain(*runs)))
    whole_blocks = (itertools.chain(*runs[:place], block, *runs[place + 1 :]) for block in blocks)
    return Labels(along=along, blocks=tuple(Labels(tuple(block)) for block in whole_blocks))


def matched_axes(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """The finest runs of axes of two shapes that hold the same entries.

    >>> matched_axes((2, 6, 5), (2, 2, 3, 5))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 3), range(3, 4))]
    """
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((range(start[0], i), range(start[1], j)))
    return runs


def _kept_axis(old: Shape, new: Shape, axis: int) -> int | None:
    """Where an axis stands after a view, if it stays an axis of its own."""
    for old_axes, new_axes in matched_axes(old, new):
        if axis in old_axes:
            others = [a for a in old_axes if a != axis and old[a] != 1]
            same = [a for a in new_axes if new[a] == old[axis]]
            rest = [a for a in new_axes if a not in same[:1] and new[a] != 1]
            return same[0] if same and not others and not rest else None
    return None


def _merged_axis(old: Shape, new: Shape, axis: int) -> int | None:
    """The axis of a view that `axis` is the outermost factor of, with others behind it."""
    for old_axes, new_axes in matched_axes(old, new):
        live, made = [a for a in old_axes if old[a] != 1], [a for a in new_axes if new[a] != 1]
        if axis in old_axes:
            return made[0] if len(made) == 1 and len(live) > 1 and live[0] == axis else None
    return None


def _divide(whole: Term, sizes: Sequence[int], names: Sequence[Origin], reason: object) -> list[Term]:
    """A term as a row-major product of these sizes; fixed where it does not divide so."""
    axes, rest = [], whole
    moves = not is_fixed(whole)
    for size, name in zip(sizes[:-1], names, strict=False):
        pair = split(rest, size, reason)
        if pair is None:
            fix(whole, reason)
            return [fixed(n, reason) for n in sizes]
        if moves:
            _note_origin(pair[0], Outer(name))
        axes.append(pair[0])
        rest = pair[1]
    return [*axes, rest] if sizes else []


def _divide_into_blocks(
    whole: Term, sizes: Sequence[int], divided: int, names: Sequence[Origin], reason: object
) -> list[list[Term]]:
    """The axes of each block, where the axis `divided` becomes blocks of one entry."""
    inner = math.prod(sizes[divided + 1 :])
    outer = _divide(whole, [*sizes[:divided], sizes[divided] * inner], names, reason)
    rest = outer.pop()
    blocks = []
    for _ in range(sizes[divided]):
        head, rest = cut(rest, inner, reason)
        axes = _divide(head, sizes[divided + 1 :], names[divided + 1 :], reason)
        blocks.append([*outer, fixed(1, "a single entry"), *axes])
    return blocks


def _note_origin(term: Term, origin: Origin) -> None:
    term = find(term)
    if term.is_variable and 1 < term.size <= LARGEST_BLOCKED_AXIS:
        term.origins.add(origin)


def _origins(term: Term) -> set[Origin]:
    term = find(term)
    return set(term.origins) if term.is_variable else {origin for leaf in leaves(term) for origin in leaf.origins}
