"""How the Neuron rule sees one parameter: as a batch of matrices, with a neuron behind every row and column.

    axes  "G:2*d[G]:4, e[G]:3, 3, 3"   a grouped convolution
    form  batch 2, rows 4, columns 27   mean over columns: an entry for each (G, d); over rows: one for each (G, e, tap)
    slots axis 0: row entries -> neurons of (G, d); axis 1: column entries -> neurons of (G, e)

An entry is a row or a column of the form. A group that depends on another is resolved wherever both stand on one side,
or the outer one leads the parameter (it becomes the batch): then the means over the other side permute with the full
group, dependent permutations included. A parameter where neither holds counts as a vector whose entries have no neuron.

Legend of shapes: E entries of one side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from lopt.axes import Axis, Concatenation, Fixed, Group, Product, children, leaves

ROLES = ("out", "in", "vector", "other")  # of an axis: the first, the second, the only one, a later one
Table: TypeAlias = tuple[tuple[str, int], ...]  # the groups that tell its neurons apart, with their sizes
_Places: TypeAlias = dict[str, np.ndarray]  # group -> its position at each entry

# More positions than the first, with fewer weights each than the second, have no neurons: those of a long vector or a
# thin matrix would cost more than all else.
_MANY, _FEW = 1 << 16, 8


class Slot(NamedTuple):
    """Where the entries of one side meet the neurons of one table."""

    role: int
    table: Table
    entries: np.ndarray  # [M], of the side
    neurons: np.ndarray  # [M], of the table


class Form(NamedTuple):
    """A parameter as [batch, rows, columns], its memory unchanged."""

    batch: int
    rows: int
    columns: int
    row_slots: tuple[Slot, ...]  # of the entries (batch, rows)
    column_slots: tuple[Slot, ...]  # of the entries (batch, columns)
    hidden: bool  # rows and columns both hold groups

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.rows, self.columns


def form_of(name: str, axes: Sequence[Axis]) -> Form:
    """The form of a parameter, with the fewest entries among those that resolve all dependent groups."""
    whole = math.prod(axis.size for axis in axes)
    if any(map(_ambiguous, axes)):
        return Form(1, 1, whole, (), (), False)
    if len(axes) < 2:
        return Form(1, 1, whole, (), _slots(name, axes, 0, len(axes), ()), False)
    ties = [(k, _provider(axes, k, group)) for k, axis in enumerate(axes) for group in _needed(axis)]
    cuts = [cut for cut in range(1, len(axes)) if all((k < cut) == (far < cut) or far == 0 < k for k, far in ties)]
    if not cuts:
        return Form(1, 1, whole, (), (), False)
    lead = _lead(axes)
    batch, first = math.prod(factor.size for factor in lead), _factors(axes[0])
    sizes = {k: (math.prod(a.size for a in axes[:k]), math.prod(a.size for a in axes[k:])) for k in cuts}
    cut = min(cuts, key=lambda k: sizes[k][0] + batch * sizes[k][1])
    rows, columns = sizes[cut][0] // max(1, batch), sizes[cut][1]
    inside = [leaf for part in (*first[len(lead) :], *axes[1:cut]) for leaf in leaves(part)]
    hidden = has_group(inside) and has_group(leaves(axes[cut])) and rows > 1 and columns > 1
    row_slots, column_slots = _slots(name, axes, 0, cut, ()), _slots(name, axes, cut, len(axes), lead)
    return Form(batch, rows, columns, row_slots, column_slots, hidden)


def _factors(axis: Axis) -> tuple[Axis, ...]:
    return axis.factors if isinstance(axis, Product) else (axis,)


def has_group(found: Iterator[Axis] | Sequence[Axis]) -> bool:
    """Whether any of these leaves is permuted."""
    return any(isinstance(leaf, Group) for leaf in found)


def _names(axis: Axis) -> set[str]:
    """The groups and named fixed axes that have one position at each position of `axis`: none in a concatenation."""
    if isinstance(axis, Product):
        return set().union(*map(_names, axis.factors))
    return {axis.name} if isinstance(axis, Fixed | Group) and axis.name else set()


def _needed(axis: Axis) -> set[str]:
    """The groups that those in `axis` depend on, and that `axis` does not hold beside them."""
    if isinstance(axis, Group):
        return set(axis.within)
    return set().union(*map(_needed, children(axis))) - _names(axis)


def _ambiguous(axis: Axis) -> bool:
    """Whether a group stands twice in one product and another depends on it: H*d[H]*H*d[H]."""
    found = list(leaves(axis))
    outer = {name for leaf in found if isinstance(leaf, Group) for name in leaf.within}
    inside = any(map(_ambiguous, children(axis)))
    return inside or isinstance(axis, Product) and any(sum(leaf.name == far for leaf in found) > 1 for far in outer)


def _provider(axes: Sequence[Axis], k: int, group: str) -> int:
    """The axis on which the group stands that axis k depends on: the nearest before it, else the nearest after it."""
    order = (*range(k - 1, -1, -1), *range(k + 1, len(axes)))
    return next(far for far in order if group in _names(axes[far]))


def _lead(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The first factors of axis 0, up to the last one that groups of other axes depend on."""
    needed = {group for k in range(1, len(axes)) for group in _needed(axes[k]) if _provider(axes, k, group) == 0}
    factors = _factors(axes[0])
    last = max((k + 1 for k, factor in enumerate(factors) if _names(factor) & needed), default=0)
    return factors[:last]


# --- entries and their neurons ---------------------------------------------------------------------------------------


def _slots(name: str, axes: Sequence[Axis], start: int, stop: int, lead: Sequence[Axis]) -> tuple[Slot, ...]:
    """The slots of the side that is made of `lead` and axes[start:stop]."""
    side = [*lead, *axes[start:stop]]
    sizes = [axis.size for axis in side]
    count = math.prod(sizes)
    if not count or (count > _MANY and math.prod(axis.size for axis in axes) < count * _FEW):
        return ()
    positions = np.unravel_index(np.arange(count), sizes) if sizes else ()
    stand: dict[int, _Places] = {0: {}}  # on which axis
    for k, (axis, position) in enumerate(zip(side, positions, strict=True)):
        stand.setdefault(start + k - len(lead) if k >= len(lead) else 0, {}).update(_places(axis, position))
    groups = {leaf.name: leaf for axis in side for leaf in leaves(axis) if leaf.name}
    found = []
    for index in range(start, stop):
        role = 2 if len(axes) == 1 else min(index, 1) if index < 2 else 3
        axis, position = axes[index], positions[len(lead) + index - start]
        for mask, places in _pieces(axis, position):
            for leaf in list(places):
                known = groups[leaf]
                if isinstance(known, Group):
                    missing = [far for far in known.within if far not in places]
                    places |= {far: stand[_provider(axes, index, far)][far] for far in missing}
            if not places and index < 2:
                places = {f"{name}/{index}": position}  # positions without a name are told apart in this axis alone
            if places:
                found.append(_slot(role, places, groups, axis.size, mask))
    return tuple(found)


def _slot(role: int, places: _Places, leaf: dict[str, Fixed | Group], size: int, mask: np.ndarray | None) -> Slot:
    names = sorted(places)
    table = tuple((name, leaf[name].size if name in leaf else size) for name in names)
    neurons = np.ravel_multi_index([places[name] for name in names], [n for _, n in table], mode="clip")
    entries = np.arange(len(neurons)) if mask is None else np.flatnonzero(mask)
    return Slot(role, table, entries, neurons[entries])


def _places(axis: Axis, position: np.ndarray) -> _Places:
    if isinstance(axis, Product):
        parts = zip(axis.factors, _unravel(axis, position), strict=True)
        found: _Places = {}
        for factor, part in parts:
            found |= _places(factor, part)
        return found
    return {axis.name: position} if isinstance(axis, Fixed | Group) and axis.name else {}


def _unravel(axis: Product, position: np.ndarray) -> tuple[np.ndarray, ...]:
    """The position in every factor. An empty axis has no positions, and the sizes do not matter then."""
    return np.unravel_index(position, [max(1, factor.size) for factor in axis.factors])


def _pieces(axis: Axis, position: np.ndarray) -> Iterator[tuple[np.ndarray | None, _Places]]:
    """The pieces of an axis between which its neurons change kind: where they are, and the neurons' positions."""
    if isinstance(axis, Concatenation):
        start = 0
        for segment in axis.segments:
            inside = (position >= start) & (position < start + segment.size)
            for mask, places in _pieces(segment, np.clip(position - start, 0, max(0, segment.size - 1))):
                yield inside if mask is None else inside & mask, places
            start += segment.size
    elif isinstance(axis, Product):
        parts = _unravel(axis, position)
        choices = [list(_pieces(factor, part)) for factor, part in zip(axis.factors, parts, strict=True)]
        for choice in itertools.product(*choices):
            masks = [mask for mask, _ in choice if mask is not None]
            places: _Places = {}
            for _, more in choice:
                places |= more
            yield np.logical_and.reduce(masks) if masks else None, places
    else:
        yield None, {axis.name: position} if axis.name else {}
