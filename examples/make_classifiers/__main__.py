"""python -m examples.make_classifiers data=cifar10

Trains small classifiers from random initialisations, a shard at a time. A command that was stopped, in whatever way,
goes on where it was when it is given again. Exit codes: 0; 2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from examples.common import use_threads
from examples.common.sets import make_set
from examples.common.shards import Shard
from examples.make_classifiers.folder import load_classifiers
from examples.make_classifiers.training import Problem, initial_networks, load_problem, measure, train_all, training_of
from meta_train.cli import run
from tasks.arguments import check_at_least, check_positive, check_widths
from tasks.data import SPLITS

INTERRUPTED = 130


def main(config: DictConfig) -> int:
    """Makes what is missing of the set that `config` describes."""
    folder, made = Path(config.folder), settings(config)
    use_threads(config.threads)
    problem = load_problem(made["data"], made["size"], made["network"], made["hidden"])
    console = Console(stderr=True, highlight=False)

    def make(shard: Shard, generator: torch.Generator) -> dict[str, Tensor]:
        return networks_of(problem, shard.stop - shard.start, made, generator)

    try:
        make_set(folder, made, make, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return INTERRUPTED
    for split, networks in load_classifiers(folder, made["data"], made["network"]).splits.items():
        low, high = 100 * networks.accuracy.min(), 100 * networks.accuracy.max()
        mean = 100 * networks.accuracy.mean()
        print(f"{split}: {len(networks):,} networks, test accuracy {mean:.2f} % (from {low:.1f} to {high:.1f})")
    print(f"{folder}: manifest.json, {len(list(folder.glob('*.safetensors')))} shards")
    return 0


def settings(config: DictConfig) -> dict[str, Any]:
    """All that the numbers of a set depend on: what its manifest says."""
    found: Any = OmegaConf.to_container(config)
    made = {key: value for key, value in found.items() if key not in ("folder", "threads")}
    for key in ("size", "steps", "batch_size", "tested", "shard", *SPLITS):
        check_positive(key, made[key])
    check_widths("hidden", made["hidden"], least=1)
    check_at_least("lr", made["lr"], 0.0)
    check_at_least("seed", made["seed"], 0)
    return made


def networks_of(problem: Problem, count: int, config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """`count` networks before and after training, with their test loss and accuracy: what a shard holds."""
    initial = initial_networks(problem, count, generator)
    final = train_all(problem, initial, training_of(config), generator)
    states = {f"{state}/{name}": x for state, t in (("initial", initial), ("final", final)) for name, x in t.items()}
    return {**states, **measure(problem, final, "test", config["tested"])._asdict()}


if __name__ == "__main__":
    sys.exit(run("examples/make_classifiers", main))
