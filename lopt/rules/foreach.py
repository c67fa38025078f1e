"""What SGDM and Adam share in place: PyTorch's foreach operators, which take all tensors in one call.

Hyper-parameters are tensors, (), and stay so on a device, so that nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.rules.rule import State

_torch: Any = torch  # the foreach operators have no public names


def entries(state: State, grads: Mapping[str, Tensor], key: str) -> list[Tensor]:
    """What the state holds under a key, in the order of the gradients."""
    return [state.tensors[name][key] for name in grads]


def count_(state: State, grads: Mapping[str, Tensor]) -> list[Tensor]:
    """Counts this update of every tensor; the numbers, () each."""
    steps = entries(state, grads, "step")
    _torch._foreach_add_(steps, torch.ones_like(steps[0]))
    return steps


def moving_average_(old: Sequence[Tensor], new: Sequence[Tensor], gain: Tensor) -> None:
    """old <- (1 - gain) old + gain new."""
    if _is_read(gain):
        _torch._foreach_lerp_(old, new, gain.item())
    else:
        _torch._foreach_mul_(old, 1 - gain)
        _torch._foreach_add_(old, _torch._foreach_mul(new, gain))


def moving_square_(old: Sequence[Tensor], new: Sequence[Tensor], decay: Tensor, gain: Tensor) -> None:
    """old <- decay old + gain new^2."""
    _torch._foreach_mul_(old, decay)
    if _is_read(gain):
        _torch._foreach_addcmul_(old, new, new, value=gain.item())
    else:
        squares = _torch._foreach_mul(new, new)
        _torch._foreach_mul_(squares, gain)
        _torch._foreach_add_(old, squares)


def _is_read(x: Tensor) -> bool:
    """Whether a number may be read: on a CPU, where nothing waits for it, and it saves a copy of all tensors."""
    return x.device.type == "cpu"
