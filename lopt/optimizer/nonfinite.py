"""Is every gradient finite? One pass over memory, one answer for all processes that share a sharded tensor.

A tensor that is sharded (a DTensor) is looked at shard by shard, and the answers are reduced over its mesh, so that
every process takes the same branch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lopt.errors import InvalidInput
from lopt.rules.sharded import is_distributed

_torch: Any = torch  # the foreach operators have no public names
EXACT = math.inf  # the order of a norm that is finite exactly if all entries are

# Beyond this a sum of squares, or a mean of them without its bias, may leave float32, in which rules compute.
LARGEST = 1e14


class Admitted(NamedTuple):
    """What a step is made of, and whether it counts."""

    grads: dict[str, Tensor]
    loss: Tensor | None
    finite: bool | Tensor  # False: nothing must change; a tensor, (): the device knows, for a capturable step


def admit(
    grads: dict[str, Tensor], loss: Tensor | None, param_groups: Sequence[MutableMapping[str, Any]], on_nonfinite: str
) -> Admitted:
    """A step that does not count is counted in the first group's "skipped_steps".

    What is finite and beyond LARGEST is brought to between -LARGEST and LARGEST; in a capturable step, which takes no
    second look, it counts as infinite.

    Raises:
        InvalidInput: the step does not count, with on_nonfinite "raise".
    """
    first, capturable = param_groups[0], any(group["capturable"] for group in param_groups)
    finite = all_finite([*grads.values(), *([] if loss is None else [loss])], LARGEST, exact=capturable)
    if capturable:
        if not isinstance(first["skipped_steps"], Tensor):
            first["skipped_steps"] = torch.full((), first["skipped_steps"], device=finite.device)
        first["skipped_steps"].add_(~finite)
        return Admitted(grads, loss, finite)
    if finite:
        return Admitted(grads, loss, True)
    names = nonfinite_names(grads) + ([] if loss is None else nonfinite_names({"loss": loss}))
    if not names:
        return Admitted({k: _bounded(x) for k, x in grads.items()}, None if loss is None else _bounded(loss), True)
    first["skipped_steps"] += 1
    found = f"not finite (NaN or infinite): {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    if on_nonfinite == "raise":
        raise InvalidInput(f"the gradients of these parameters are {found}. Weights and state are as they were")
    if first["skipped_steps"] == 1:
        warnings.warn(
            f"LearnedOptimizer skips a step whose gradients are {found}. It says so once; `skipped_steps` counts them. "
            'With on_nonfinite="raise" it raises.',
            stacklevel=8,  # where step was called
        )
    return Admitted(grads, loss, False)


def _bounded(x: Tensor) -> Tensor:
    largest = min(LARGEST, torch.finfo(x.dtype).max)
    return x.clamp(-largest, largest)


def all_finite(tensors: Sequence[Tensor], limit: float = math.inf, exact: bool = False) -> Tensor:
    """() bool: no entry of any tensor is NaN, infinite, or as large as the limit.

    On a CPU the Euclidean norm runs 20 times faster than the maximum norm, and is larger: unless `exact`, a False there
    says no more than "look closer".
    """
    quick = tensors[0].device.type == "cpu" and not torch.compiler.is_compiling() and not exact
    order = 2.0 if quick else EXACT
    return ~_anywhere(tensors, lambda parts: ~(_norms(parts, order) < limit).all())


def all_zero(tensors: Sequence[Tensor]) -> Tensor:
    """() bool: every entry of every tensor is zero."""
    return ~_anywhere(tensors, lambda parts: (_norms(parts, EXACT) != 0).any())


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with an entry that is NaN or infinite, exactly."""
    return [k for k, x in tensors.items() if _anywhere([x], lambda parts: ~parts[0].isfinite().all())]


def _norms(parts: Sequence[Tensor], order: float) -> Tensor:
    filled = [x for x in parts if x.numel()]  # the maximum norm of nothing is an error
    return torch.stack(_torch._foreach_norm(filled or [parts[0].new_zeros(1)], order))


def _anywhere(tensors: Sequence[Tensor], test: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """() bool: the test holds for these tensors or, where they are sharded, for the shards of any process."""
    found, plain, meshes = [], [], {}
    for x in tensors:
        if is_distributed(x):
            sharded: Any = x
            meshes.setdefault(sharded.device_mesh, []).append(sharded.to_local())
        else:
            plain.append(x)
    if plain:
        found.append(test(plain))
    for mesh, parts in meshes.items():
        flag = test(parts).float()
        for group in mesh.get_all_groups():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        found.append(flag > 0)
    return torch.stack(found).any() if len(found) > 1 else found[0]
