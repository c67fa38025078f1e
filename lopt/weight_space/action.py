"""How a permutation acts on a tensor whose axes are known, and which axes have such an action at all.

One function, `_source`, says where each entry of a permuted axis comes from; `permute_axes` is written on top of it,
and `collect_groups` checks that the groups of several tensors fit together. The caller is `WeightSpace`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lopt.axes import Axis, Fixed, Group, Product, children, leaves
from lopt.errors import InvalidInput


def permute_axes(
    tensor: Tensor, axes: Sequence[Axis], permutations: Mapping[str, Tensor], channels: bool = False
) -> Tensor:
    """[*batch, *shape] or [*batch, *shape, channels] -> the same: permuted[i, j] = tensor[p(i), q(j)]."""
    first = tensor.dim() - int(channels) - len(axes)
    tables = {name: table.to(tensor.device) for name, table in permutations.items()}
    joint = [bool(_outside(axis)) for axis in axes]  # axes whose permutation depends on the position along others
    for k, axis in enumerate(axes):
        if not joint[k] and not is_fixed(axis):
            position = torch.arange(axis.size, device=tensor.device)
            tensor = tensor.index_select(first + k, _source(axis, position, tables, _NOWHERE))
    if not any(joint):
        return tensor
    positions = _positions(axes, tensor.device)
    index = [
        _source(axis, position, tables, beside) if depends else position
        for axis, position, depends, beside in zip(axes, positions, joint, _NOWHERE.along(axes, positions), strict=True)
    ]
    return tensor[(..., *index, slice(None))] if channels else tensor[(..., *index)]


def is_fixed(axis: Axis) -> bool:
    """Whether no group permutes any part of the axis."""
    return all(isinstance(leaf, Fixed) for leaf in leaves(axis))


def _outside(axis: Axis, inside: frozenset[str] = frozenset()) -> set[str]:
    """The groups that parts of `axis` depend on and that stand on another axis of the tensor."""
    if isinstance(axis, Group):
        return set(axis.within) - inside
    inside |= _standing(axis)
    return {name for child in children(axis) for name in _outside(child, inside)}


def _standing(axis: Axis) -> set[str]:
    """The groups and named fixed axes that have a position within `axis`: those not inside a concatenation."""
    if isinstance(axis, Product):
        return {name for factor in axis.factors for name in _standing(factor)}
    return {axis.name} if isinstance(axis, Fixed | Group) and axis.name else set()


def _coordinates(axis: Axis, position: Tensor) -> list[tuple[str, Tensor]]:
    """The position of each group, and of each named fixed axis, that stands in `axis`, from left to right."""
    if isinstance(axis, Fixed | Group):
        return [(axis.name, position)] if axis.name else []
    if isinstance(axis, Product):
        parts = zip(axis.factors, _unravel(axis, position), strict=True)
        return [found for factor, part in parts for found in _coordinates(factor, part)]
    return []


def _unravel(axis: Product, position: Tensor) -> tuple[Tensor, ...]:
    """The position in every factor. An empty axis has no positions, and the sizes do not matter then."""
    return torch.unravel_index(position, [max(1, factor.size) for factor in axis.factors])


@dataclass(frozen=True)
class _Places:
    """Where the groups stand, seen from some axis or factor of a tensor.

    A group may stand several times: H, d[H], H, d[H] is a matrix from heads of channels to heads of channels. Then the
    nearest before counts, and if there is none before, the nearest after.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.before[name] if name in self.before else self.after[name]

    def along(self, axes: Sequence[Axis], positions: Sequence[Tensor]) -> list[_Places]:
        """Seen from each of several axes, or factors of a product, side by side."""
        found = [_coordinates(axis, position) for axis, position in zip(axes, positions, strict=True)]
        return [
            _Places(
                {**self.before, **dict(itertools.chain(*found[:k]))},
                {**self.after, **dict(reversed([*itertools.chain(*found[k + 1 :])]))},
            )
            for k in range(len(axes))
        ]


_NOWHERE = _Places({}, {})


def _source(axis: Axis, position: Tensor, permutations: Mapping[str, Tensor], places: _Places) -> Tensor:
    """Where the entries that a permutation brings to `position` come from."""
    if isinstance(axis, Fixed):
        return position
    if isinstance(axis, Group):
        return permutations[axis.name][(*(places[name] for name in axis.within), position)]
    if isinstance(axis, Product):
        parts = _unravel(axis, position)
        source = torch.zeros_like(position)
        for factor, part, beside in zip(axis.factors, parts, places.along(axis.factors, parts), strict=True):
            source = source * factor.size + _source(factor, part, permutations, beside)
        return source
    source, start = position, 0
    for segment in axis.segments:
        inside = (position >= start) & (position < start + segment.size)
        local = (position - start).clamp(0, segment.size - 1)
        source = torch.where(inside, _source(segment, local, permutations, places) + start, source)
        start += segment.size
    return source


def _positions(axes: Sequence[Axis], device: torch.device | None = None) -> list[Tensor]:
    """Coordinates along every axis, each shaped to broadcast against the others."""
    rank = len(axes)
    return [
        torch.arange(axis.size, device=device).reshape([-1 if i == k else 1 for i in range(rank)])
        for k, axis in enumerate(axes)
    ]


# --- which axes fit together -----------------------------------------------------------------------------------------


def collect_groups(tensors: Mapping[str, tuple[Axis, ...]]) -> dict[str, Group]:
    """The groups of all tensors by name.

    Raises:
        InvalidInput: a name has two sizes or two meanings; a group stands without the groups that it depends on.
    """
    named: dict[str, Fixed | Group] = {}
    for name, axes in tensors.items():
        for leaf in itertools.chain.from_iterable(map(leaves, axes)):
            if leaf.name and named.setdefault(leaf.name, leaf) != leaf:
                raise InvalidInput(
                    f"parameter {name!r}: axis {leaf.name!r} is {leaf} here and {named[leaf.name]} elsewhere. "
                    "Axes of one name have one size and one group; give different ones different names."
                )
    groups = {name: leaf for name, leaf in named.items() if isinstance(leaf, Group)}
    for name, axes in tensors.items():
        outside = set().union(*map(_standing, axes))
        for axis in axes:
            if missing := sorted(_outside(axis) - outside):
                group = next(leaf for leaf in leaves(axis) if isinstance(leaf, Group) and {*missing} & {*leaf.within})
                raise InvalidInput(
                    f"parameter {name!r}: group {group.name!r} depends on {missing}, absent in this tensor"
                )
    for group in groups.values():
        inherited = {far for near in group.within if near in groups for far in groups[near].within}
        if missing := sorted(inherited - set(group.within)):
            raise InvalidInput(
                f"group {group.name!r} depends on {list(group.within)}, which depend on {missing}: name these, too, or "
                "one permutation after another would not be a permutation of this form."
            )
    return groups
