"""Parameters that are sharded over processes (FSDP2's DTensor): the only place that knows of them.

Every process works on its own rows of each tensor. Sums over rows and columns are made whole by one addition over the
processes, so all of them have the same tokens; what then belongs to rows is a slice of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from lopt.errors import InvalidInput


class Shard(NamedTuple):
    """The part of a tensor that this process holds: positions start to stop of its first axis."""

    start: int
    stop: int
    group: Any  # of the processes that hold the other parts


def is_distributed(x: Tensor) -> bool:
    return hasattr(x, "to_local")


def local(x: Any) -> Tensor:
    """The part that this process holds; a plain tensor is one part."""
    return x.to_local() if is_distributed(x) else x


def whole(x: Any) -> Tensor:
    """All parts together; a plain tensor as it is."""
    return x.full_tensor() if is_distributed(x) else x


def distribute_like(part: Tensor, like: Any) -> Tensor:
    """This process's part of a tensor that is sharded as `like` is; for a plain `like` the part itself."""
    if not is_distributed(like):
        return part
    shape, stride = like.shape, like.stride()
    return type(like).from_local(part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def part_of(full: Tensor, like: Any) -> Tensor:
    """The part of `full`, which every process has, that this one holds of `like`; sharded as `like` is."""
    shard = shard_of(like)
    return distribute_like(full if shard is None else full[shard.start : shard.stop].clone(), like)


def shard_of(x: Any) -> Shard | None:
    """Which part this process holds; None for all of it.

    Raises:
        InvalidInput: sharded along another axis than the first, or along several axes of the mesh.
    """
    if not is_distributed(x):
        return None
    dims = [k for k, placement in enumerate(x.placements) if not placement.is_replicate()]
    if not dims:
        return None
    if len(dims) > 1 or not x.placements[dims[0]].is_shard(0) or type(x.placements[dims[0]]).__name__ != "Shard":
        raise InvalidInput(
            f"params: a tensor is placed as {x.placements}; the rule works on tensors that are sharded along their "
            "first axis over one axis of the mesh, as fully_shard does. Leave the others whole."
        )
    mesh, size = x.device_mesh, x.shape[0]
    step = -(-size // mesh.size(dims[0]))
    start = min(size, mesh.get_local_rank(dims[0]) * step)
    return Shard(start, min(size, start + step), mesh.get_group(dims[0]))


def one_group(shards: Mapping[str, Shard | None]) -> Any:
    """The processes that share the parameters; None if nothing is sharded."""
    groups = {id(shard.group): shard.group for shard in shards.values() if shard is not None}
    if len(groups) > 1:
        raise InvalidInput("params: they are sharded over different groups of processes; give each group its optimizer")
    return next(iter(groups.values()), None)


def counts_here(shard: Shard | None, group: Any) -> bool:
    """Of a tensor that every process holds whole, only the first one's sums count."""
    return group is None or shard is not None or dist.get_rank(group) == 0


def add_over(parts: Iterable[Tensor], group: Any) -> None:
    """Each tensor becomes its sum over the processes of the group, in place."""
    if group is not None:
        for part in parts:
            dist.all_reduce(part, group=group)


def device_of(tensors: Mapping[str, Tensor]) -> torch.device:
    return next(iter(tensors.values())).device
