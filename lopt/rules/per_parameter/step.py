"""PerParameter's step in place by PyTorch's operators: in chunks whose buffers are reused.

Exact rewrites: the features of time stand in the first bias; the normalisation of a tensor's channels stands in the
columns of the first weights; α and β stand in the head. What is left for a weight are the products with matrices.

Legend: n weights of a chunk, C weight-shaped channels, D decays, c width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.features import BASE, DECAYS, GAINS, WEIGHT_CHANNELS
from lopt.rules.moments import RMS_GUARD
from lopt.rules.rule import State, Updates
from lopt.rules.sharded import is_distributed


class Layers(NamedTuple):
    """What the MLP and the step are made of, for this point in time."""

    first: Tensor  # [c, C]
    bias: Tensor  # [c]: with the features of time
    rest: Sequence[tuple[Tensor, Tensor]]  # [c, c], [c] each
    head: Tensor  # [c]: times α β
    head_bias: Tensor  # (): times α β
    alpha: Tensor  # ()


def chunk_size(device: torch.device) -> int:
    """Weights of a chunk: on a CPU so few that what the layers hand on stays in the second cache."""
    return 1 << 20 if device.type == "cuda" else 8192


def in_order(params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State) -> bool:
    """Whether memory is as a step in place wants it: whole tensors, the six momenta of a weight side by side."""
    momenta = [state.tensors[name]["momenta"] for name in grads]
    return not any(map(is_distributed, params.values())) and all(x.is_contiguous() for x in momenta)


class Buffers:
    """What a chunk needs, made once a step."""

    def __init__(self, weight: Tensor, momenta: Mapping[torch.dtype, int], width: int) -> None:
        size = min(chunk_size(weight.device), max(momenta.values(), default=0))
        self.size = max(1, size)
        self.x = weight.new_empty(self.size, WEIGHT_CHANNELS)
        self.hidden = [weight.new_empty(self.size, width) for _ in range(2)]
        self.decays, self.gains = {}, {}
        for dtype in momenta:
            both = torch.tensor([DECAYS, GAINS], dtype=dtype, device=weight.device)
            self.decays[dtype] = both[0].repeat(self.size)  # [n D]: one long row is faster than many short ones
            self.gains[dtype] = both[1:]


def updates_in_chunks(
    layers: Layers, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
) -> Iterator[Updates]:
    """Advances the state in place; the updates of one tensor after the other."""
    largest: dict[torch.dtype, int] = {}
    for name, g in grads.items():
        dtype = state.tensors[name]["momenta"].dtype
        largest[dtype] = max(largest.get(dtype, 0), g.numel())
    buffers = Buffers(layers.first, largest, layers.first.shape[0])
    for name, g in grads.items():
        entries = state.tensors[name]
        entries["step"] += 1
        momenta = entries["momenta"].view(-1, len(DECAYS))
        flat = g.reshape(-1), params[name].reshape(-1), momenta
        first = layers.first * _scales(flat, buffers)
        out = torch.empty(momenta.shape[0], dtype=momenta.dtype, device=g.device)
        for start in range(0, len(out), buffers.size):
            part = slice(start, start + buffers.size)
            _combine(layers, first, _channels(flat, part, buffers), momenta[part, BASE], out[part], buffers)
        yield Updates([name], [out.view(g.shape)])


def _scales(flat: tuple[Tensor, Tensor, Tensor], buffers: Buffers) -> Tensor:
    """Advances the momenta of a tensor; 1 / RMS of each channel, [C]."""
    g, w, momenta = flat
    decays, gains, dtype = buffers.decays[momenta.dtype], buffers.gains[momenta.dtype], buffers.x.dtype
    squares = buffers.x.new_zeros(WEIGHT_CHANNELS)
    for start in range(0, len(g), buffers.size):
        part = slice(start, start + buffers.size)
        old = momenta[part]
        old.view(-1).mul_(decays[: old.numel()])
        old.addmm_(g[part].to(old.dtype).unsqueeze(1), gains)
        channels = [torch.dot(x, x) for x in (w[part].to(dtype), g[part].to(dtype))]
        norms = torch.linalg.vector_norm(old, dim=0).to(dtype)
        squares += torch.cat([torch.stack(channels), norms.square()])
    return torch.rsqrt(squares / max(1, len(g)) + RMS_GUARD)


def _channels(flat: tuple[Tensor, Tensor, Tensor], part: slice, buffers: Buffers) -> Tensor:
    """Weight, gradient and momenta of a chunk, side by side: [n, C]."""
    g, w, momenta = flat
    x = buffers.x[: len(momenta[part])]
    x[:, 0].copy_(w[part])
    x[:, 1].copy_(g[part])
    x[:, 2:].copy_(momenta[part])
    return x


def _combine(layers: Layers, first: Tensor, x: Tensor, base: Tensor, out: Tensor, buffers: Buffers) -> None:
    """α (m_0.9 + β MLP): [n]."""
    y, z = (hidden[: len(x)] for hidden in buffers.hidden)
    torch.addmm(layers.bias, x, first.t(), out=y).relu_()
    for weight, bias in layers.rest:
        torch.addmm(bias, y, weight.t(), out=z).relu_()
        y, z = z, y
    torch.mul(base, layers.alpha, out=out)
    out.add_(torch.addmv(layers.head_bias, y, layers.head))
