"""PerParameter's step on a CPU by a compiled kernel, kernel.cpp: a call for some tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lopt.rules import native
from lopt.rules.features import DECAYS, GAINS
from lopt.rules.moments import RMS_GUARD
from lopt.rules.per_parameter.step import Layers, in_order
from lopt.rules.rule import State, Updates

_torch: Any = torch  # the foreach operators have no public names

SOURCE = Path(__file__).with_name("kernel.cpp")
GROUP = 1 << 20  # weights whose updates are held at once, unless one tensor has more
_TILE = 4  # channels that the kernel computes at once


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where it cannot be made."""
    found = native.load(SOURCE, "PerParameter")
    if found is not None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        found.lopt_per_parameter.argtypes = [pointer, integer, pointer, integer, integer, pointer, integer]
        found.lopt_per_parameter.restype = None
    return found


def suits(theta: Tensor, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State) -> bool:
    """Whether the kernel can take this step: θ and momenta of float32, in the memory of this machine."""
    if theta.dtype != torch.float32 or not in_order(params, grads, state) or not native.enabled():
        return False
    momenta = [state.tensors[name]["momenta"] for name in grads]
    return all(m.dtype == torch.float32 and m.device.type == "cpu" for m in momenta) and library() is not None


def native_updates(
    layers: Layers, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
) -> Iterator[Updates]:
    """Advances the state in place; the updates of one group of tensors after the other."""
    kernel, network, width = library(), packed(layers), -(-len(layers.head) // _TILE) * _TILE
    assert kernel is not None
    groups = _groups(grads)
    out = torch.empty(max((sum(grads[k].numel() for k in names) for names in groups), default=0))
    _torch._foreach_add_([state.tensors[k]["step"] for k in grads], 1)
    for names in groups:
        read = [[x[k].to(torch.float32).contiguous().resolve_neg() for k in names] for x in (params, grads)]
        tensors = [*read, [state.tensors[k]["momenta"] for k in names]]
        sizes = [grads[k].numel() for k in names]
        table = np.array([*([x.data_ptr() for x in row] for row in tensors), sizes], dtype=np.int64)
        kernel.lopt_per_parameter(
            table.ctypes.data,
            len(names),
            network.data_ptr(),
            width,
            len(layers.rest),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        pieces = out[: sum(sizes)].split(sizes)
        yield Updates(names, [x.view(grads[k].shape) for k, x in zip(names, pieces, strict=True)])


def packed(layers: Layers) -> Tensor:
    """All that the kernel knows of the network, as it reads it (`Network` in kernel.cpp): one row of numbers."""
    missing = -len(layers.head) % _TILE

    def tiles(weight: Tensor, inputs: int) -> Tensor:  # [c, c'] -> tiles of [inputs, _TILE], one after the other
        whole = pad(weight, (0, inputs - weight.shape[1], 0, missing))
        return whole.view(-1, _TILE, inputs).transpose(1, 2).flatten()

    width = len(layers.head) + missing
    scalars = torch.tensor([RMS_GUARD, *DECAYS, *GAINS])
    parts = [layers.alpha.view(1), layers.head_bias.view(1), scalars, pad(layers.head, (0, missing))]
    parts += [tiles(layers.first, layers.first.shape[1]), pad(layers.bias, (0, missing))]
    for weight, bias in layers.rest:
        parts += [tiles(weight, width), pad(bias, (0, missing))]
    return torch.cat(parts)


def _groups(grads: Mapping[str, Tensor]) -> Sequence[list[str]]:
    """Names in their order, of GROUP weights or of one tensor at most."""
    groups: list[list[str]] = []
    size = 0
    for name, g in grads.items():
        if not groups or size + g.numel() > GROUP:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += g.numel()
    return groups
