"""python -m examples.classify_inrs.throughput

How many INRs a second a classifier trains on: an NP network of this library, and the same network built of the layers
of the NFN authors' package `nfn`. Same widths, batch and optimizer, on random weights of the INRs' shapes; both take
turns in one process, and the figure is the ratio of the medians.

Legend of shapes: B INRs of a batch, c channels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
from nfn.layers import NPLinear, NPPool, TupleOp
from torch import Tensor, nn

from lopt.functionals import mlp, presets
from lopt.weight_space import WeightSpace

SIREN = {"0.weight": (32, 2), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,), "4.weight": (1, 32)}
SHAPES: Mapping[str, tuple[int, ...]] = {**SIREN, "4.bias": (1,)}
CLASSES, HEAD, WARM_UP = 10, 128, 2


class Rates(NamedTuple):
    """INRs a second of training."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def our_network(channels: int, layers: int) -> nn.Module:
    """From features name -> [B, *S, 1] to [B, CLASSES]."""
    space = WeightSpace.linear_stack(SHAPES)
    return presets.invariant("np", space, [1, *[channels] * layers], [HEAD, CLASSES])


def their_network(features: WeightSpaceFeatures, channels: int, layers: int) -> nn.Module:
    """The same of nfn's layers, from features [B, 1, *S]."""
    spec = network_spec_from_wsfeat(features)
    widths = [1, *[channels] * layers]
    parts: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        parts += [NPLinear(spec, before, after), TupleOp(nn.ReLU())]
    pooled = channels * NPPool.get_num_outs(spec)
    return nn.Sequential(*parts, NPPool(spec), nn.Flatten(), mlp([pooled, HEAD, CLASSES]))


def measure(batch: int, channels: int, layers: int, rounds: int) -> Rates:
    """Times forward, backward and AdamW of both networks by turns."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(batch, *shape, generator=generator) for name, shape in SHAPES.items()}
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    every = [x.unsqueeze(1) for x in weights.values()]
    theirs = WeightSpaceFeatures(every[::2], every[1::2])
    steps = [
        _step(our_network(channels, layers), {name: x.unsqueeze(-1) for name, x in weights.items()}, labels),
        _step(their_network(theirs, channels, layers), theirs, labels),
    ]
    seconds: list[list[float]] = [[], []]
    for k in range(-WARM_UP, rounds):
        for step, taken in zip(steps, seconds, strict=True):
            begin = time.perf_counter()
            step()
            if k >= 0:
                taken.append(time.perf_counter() - begin)
    return Rates(*(batch / statistics.median(taken) for taken in seconds))


def _step(network: nn.Module, features: Mapping[str, Tensor] | WeightSpaceFeatures, labels: Tensor) -> Callable:
    optimizer = torch.optim.AdamW(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(features), labels).backward()
        optimizer.step()

    return step


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.classify_inrs.throughput", description=__doc__)
    for name, default in (("batch", 64), ("channels", 32), ("layers", 3), ("rounds", 15), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if value < 1:
            parser.error(f"--{name}: {value}; at least 1")
    torch.set_num_threads(options.threads)
    rates = measure(options.batch, options.channels, options.layers, options.rounds)
    about = (
        f"batches of {options.batch}, {options.channels} channels, {options.layers} layers, threads: {options.threads}"
    )
    print(
        f"training on INRs 2-32-32-1, {about}: lopt {rates.ours:,.0f} INRs/s, nfn {rates.theirs:,.0f} INRs/s, "
        f"ratio {rates.ratio:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
