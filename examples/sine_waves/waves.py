r"""A SIREN for each sine wave, many fitted at once, and a set of them on disk.

    f_k(x)  close to  a_k sin(b_k x)   for x in [-π, π],   by Adam on the mean square error, with a learning rate that
    falls along half a cosine

The sum over networks of their losses has, for each network, the gradient of its own loss, and Adam works on every
number by itself; so one optimizer on the stacked weights trains each network as if it were alone.

Legend of shapes: B networks, P points, n, m neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from examples.common import canonical
from examples.common.mlps import by_name, forward, layers_of, space_of
from examples.common.sets import load_set, make_set
from examples.common.shards import Shard
from examples.make_inrs.sirens import initial_sirens
from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tasks.arguments import check_at_least, check_positive, check_widths
from tasks.data import SPLITS
from tasks.task import Split

DATA = "sines"
CHUNK = 50  # networks fitted together: as many as keep their activations in the cache
PROGRAM = "examples.sine_waves"


@dataclass(frozen=True)
class Waves:
    """The networks of one split: weights by name [N, *shape], amplitude and frequency [N, 2], error of the fit [N].

    `error` is the mean square of what is left, over the mean square of the wave.
    """

    tensors: dict[str, Tensor]
    wave: Tensor
    error: Tensor

    def __len__(self) -> int:
        return len(self.wave)


@dataclass(frozen=True)
class WaveSet:
    """The splits, the weight space of one network, and how the set was made."""

    splits: dict[Split, Waves]
    space: WeightSpace
    config: dict[str, Any]


def evaluate_waves(tensors: Sequence[Tensor], x: Tensor, frequency: float) -> Tensor:
    """What SIRENs with one input and output say at the points x [P]: [B, P]."""
    points = x.view(1, -1, 1).expand(len(tensors[0]), -1, -1)
    return forward(tensors, points, lambda phase: torch.sin(frequency * phase)).squeeze(-1)


def fit_waves(wave: Tensor, config: Mapping[str, Any], generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Fits a SIREN to each wave.

    Args:
        wave: [N, 2]: amplitude and frequency.
        config: hidden, omega, initial, steps, lr, points; see configs/examples/sine_waves.yaml.

    Shapes:
        result: name -> [N, *shape], named as the Linear layers of `nn.Sequential(Linear, Sine, Linear, ..)`; and the
        relative errors [N].
    """
    parts = [_fit_chunk(rows, config, generator) for rows in wave.split(CHUNK)]
    tensors = [torch.cat(pieces) for pieces in zip(*(tensors for tensors, _ in parts), strict=True)]
    return by_name(tensors), torch.cat([error for _, error in parts])


def _fit_chunk(wave: Tensor, config: Mapping[str, Any], generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    x = torch.linspace(-math.pi, math.pi, config["points"])
    y = wave[:, :1] * torch.sin(wave[:, 1:] * x)
    start = initial_sirens(len(wave), [1, *config["hidden"], 1], config["omega"], generator, config["initial"])
    leaves = [tensor.requires_grad_() for tensor in start]
    optimizer = torch.optim.Adam(leaves, config["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["steps"])
    for _ in range(config["steps"]):
        optimizer.zero_grad()
        (evaluate_waves(leaves, x, config["omega"]) - y).square().mean(1).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        left = (evaluate_waves(leaves, x, config["omega"]) - y).square().mean(1) / y.square().mean(1).clamp_min(1e-6)
    return [leaf.detach() for leaf in leaves], left


def make_waves(folder: Path, config: Mapping[str, Any], console: Console) -> WaveSet:
    """Makes what is missing of a set, and reads it.

    Args:
        config: all that the numbers depend on: `waves` of configs/examples/sine_waves.yaml.

    Raises:
        InvalidInput: a setting cannot be used, or the folder holds a set of another configuration.
    """
    check_waves(config)
    made = {**config, "data": DATA}
    make_set(folder, made, partial(_make, made), console)
    found = load_set(folder, PROGRAM, DATA)
    splits: dict[Split, Waves] = {}
    for split, rows in found.splits.items():
        tensors = layers_of(rows)
        tensors = canonical(tensors, config["omega"]) if config["signs"] else tensors
        splits[split] = Waves(tensors, rows["wave"], rows["error"])
    return WaveSet(splits, space_of(splits["train"].tensors), found.config)


def check_waves(config: Mapping[str, Any]) -> None:
    for key in ("steps", "points", "shard", *SPLITS):
        check_positive(key, config[key])
    check_widths("hidden", config["hidden"], least=1)
    for key, least in (("omega", 1e-3), ("initial", 0.0), ("lr", 0.0), ("seed", 0)):
        check_at_least(key, config[key], least)
    for key in ("amplitude", "frequency"):
        ends = config[key]
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
            raise InvalidInput(f"{key}={list(ends)}: give the two ends of a range, as [0, 10]")


def _make(config: Mapping[str, Any], shard: Shard, generator: torch.Generator) -> dict[str, Tensor]:
    low, high = torch.tensor([config["amplitude"], config["frequency"]], dtype=torch.float32).T
    wave = low + (high - low) * torch.rand(shard.stop - shard.start, 2, generator=generator)
    tensors, error = fit_waves(wave, config, generator)
    return {**tensors, "wave": wave, "error": error}
