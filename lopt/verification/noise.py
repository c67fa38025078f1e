"""Random numbers under which a network with dropout or noise has its symmetry exactly, not only in distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Operators that fill a tensor with independent numbers of one distribution.
_SOURCES = {
    aten.rand, aten.randn, aten.rand_like, aten.randn_like, aten.uniform, aten.uniform_, aten.exponential,
    aten.exponential_, aten.cauchy, aten.cauchy_, aten.geometric, aten.geometric_, aten.log_normal, aten.log_normal_,
    aten.normal_,
}  # fmt: skip


class UniformNoise(TorchDispatchMode):
    """Gives the random floats of one call the same value at every position: the largest that was drawn.

    Dropout masks and noise are independent of the position, so a permutation of neurons changes nothing about their
    distribution; but for one draw it does. With one value everywhere it changes nothing at all, and a mask drops
    nothing, so that whatever is behind it is seen. A normal variable becomes mean + std, a coin with a probability of
    its own falls to the likelier side. Random integers (orders, choices) stay as they are drawn.

    >>> with UniformNoise():
    ...     x = torch.dropout(torch.arange(3.0), 0.5, True)
    >>> x
    tensor([0., 2., 4.])
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet is aten.native_dropout:
            return func(args[0], 0.0, *args[2:], **kwargs)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.numel():
            return result
        given = [value for value in args if isinstance(value, Tensor)]
        if func in (aten.bernoulli.p, aten.bernoulli_.float):
            result.fill_(1)
        elif packet in _SOURCES or func is aten.normal.float_float:
            # The two parts of a complex number have one scale, and may be the same.
            result.fill_(torch.view_as_real(result).max() if result.is_complex() else result.max())
        elif packet is aten.normal and given:
            result.copy_(torch.add(args[0], args[1]))
        elif func is aten.bernoulli.default:
            result.copy_(given[0] >= 0.5)
        return result
