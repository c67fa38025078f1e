"""What the processes of a run tell each other: meta-gradients, metrics, who wants to stop, and particles to save.

Alone a process talks to nobody. A process that is gone shows as an error of torch.distributed in all others, which
becomes a `WorkerLost`: words, and an end instead of a wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class WorkerLost(RuntimeError):
    """Another process of the run has ended or does not answer."""


def world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def place_on_machine() -> int:
    """This process's number on its machine, as torchrun, Lightning or SLURM names it before any message is sent."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def mean_over_ranks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes of each tensor, all in one message, summed in float64; the same bits everywhere."""
    _, count = world()
    if count == 1:
        return dict(tensors)
    device = next(iter(tensors.values())).device
    flat = torch.cat([x.detach().to(device, torch.float64).reshape(-1) for x in tensors.values()])
    _talk(lambda: dist.all_reduce(flat))
    parts = (flat / count).split([x.numel() for x in tensors.values()])
    return {k: part.view(x.shape).to(x) for part, (k, x) in zip(parts, tensors.items(), strict=True)}


def any_rank(wish: bool, device: torch.device) -> bool:
    """Whether any process wants it."""
    if world()[1] == 1:
        return wish
    flag = torch.tensor(float(wish), device=device)
    _talk(lambda: dist.all_reduce(flag, op=dist.ReduceOp.MAX))
    return bool(flag)


def joined(packed: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What the processes packed, joined along the pairs; see `Estimator.pack`."""
    own = [{key: x.cpu() for key, x in part.items()} for part in packed]
    _, count = world()
    if count == 1:
        return own
    everyone: list[Any] = [None] * count
    _talk(lambda: dist.all_gather_object(everyone, own))
    return [_join(list(same)) for same in zip(*everyone, strict=True)]


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) if x.dim() else x for key, x in parts[0].items()}


def _talk(say: Callable[[], T]) -> T:
    try:
        return say()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise WorkerLost(f"process {world()[0]} lost another process of the run ({reason})") from error
