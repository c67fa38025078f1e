"""A weight space in git-re-basin's form (arXiv 2209.04836, `PermutationSpec`), for tools that read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lopt.axes import Axis, Group, leaves
from lopt.errors import InvalidInput

if TYPE_CHECKING:
    from lopt.weight_space import WeightSpace


def axes_to_perm(space: WeightSpace, strict: bool = False) -> dict[str, tuple[str | None, ...]]:
    """See `WeightSpace.axes_to_perm`."""
    lost = _inexpressible([*space.items(), *space.buffers.items()])
    if lost and strict:
        raise InvalidInput(
            f"strict: the groups {lost} stand in products or concatenations, or depend on others, and one permutation "
            "for each axis cannot say that; use strict=False to leave them out, or the WeightSpace itself"
        )
    return {
        name: tuple(axis.name if isinstance(axis, Group) and axis.name not in lost else None for axis in axes)
        for tensors in (space.items(), space.buffers.items())
        for name, axes in tensors
    }


def _inexpressible(tensors: Iterable[tuple[str, tuple[Axis, ...]]]) -> list[str]:
    """Groups that stand anywhere else than alone on an axis: leaving out that site alone would be no symmetry."""
    lost: dict[str, None] = {}
    for _, axes in tensors:
        for axis in axes:
            found = [leaf for leaf in leaves(axis) if isinstance(leaf, Group)]
            alone = isinstance(axis, Group) and not axis.within
            lost |= dict.fromkeys([] if alone else [leaf.name for leaf in found])
    return list(lost)


def perm_to_axes(space: WeightSpace, strict: bool = False) -> dict[str, list[tuple[str, int]]]:
    """See `WeightSpace.perm_to_axes`."""
    places: dict[str, list[tuple[str, int]]] = {}
    for name, perms in axes_to_perm(space, strict).items():
        for k, perm in enumerate(perms):
            if perm is not None:
                places.setdefault(perm, []).append((name, k))
    return places
