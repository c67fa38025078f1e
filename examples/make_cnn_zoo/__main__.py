"""python -m examples.make_cnn_zoo

Trains a zoo of CNN classifiers with varied hyper-parameters and measures their test accuracies. A command that was
stopped goes on where it was when it is given again. Exit codes: 0; 2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from examples.common import use_threads
from examples.common.sets import make_set
from examples.common.shards import Shard
from examples.make_cnn_zoo.folder import Zoo, load_zoo
from examples.make_cnn_zoo.hyper_parameters import Ranges, draw
from examples.make_cnn_zoo.pictures import draw_zoo
from examples.make_cnn_zoo.training import accuracies, train_networks
from lopt.errors import InvalidInput
from meta_train.cli import run
from tasks import ImageData, load_images
from tasks.arguments import check_at_least, check_positive
from tasks.data import SPLITS

CLASSES = 10  # of all image data sets, and of `folder.SPACE`
INTERRUPTED = 130


def main(config: DictConfig) -> int:
    """Makes what is missing of the zoo that `config` describes."""
    made, folder = settings(config), Path(config.folder)
    use_threads(config.threads)
    console = Console(stderr=True, highlight=False)
    images = load_images(made["data"], made["size"])
    if made["tested"] > len(images.labels["test"]):
        raise InvalidInput(f"tested: {made['tested']}; {made['data']!r} has {len(images.labels['test'])} test images")
    try:
        make_set(folder, made, partial(_make, made, images), console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return INTERRUPTED
    _report(load_zoo(folder, made["data"]), folder)
    return 0


def settings(config: DictConfig) -> dict[str, Any]:
    """All that the numbers of a zoo depend on: what its manifest says."""
    found: Any = OmegaConf.to_container(config)
    made = {key: value for key, value in found.items() if key not in ("folder", "threads")}
    for key in ("size", "batch", "tested", "shard", *SPLITS):
        check_positive(key, made[key])
    check_at_least("seed", made["seed"], 0)
    ranges(made)
    return made


def ranges(config: Mapping[str, Any]) -> Ranges:
    found: dict[str, Any] = {field.name: config[field.name] for field in fields(Ranges)}
    for key, value in found.items():
        found[key] = tuple(value) if isinstance(value, list) else value
    return Ranges(**found)


def _make(config: Mapping[str, Any], images: ImageData, shard: Shard, generator: torch.Generator) -> dict[str, Tensor]:
    chosen = draw(shard.stop - shard.start, ranges(config), generator)
    pixels = {split: x.mean(1, keepdim=True) for split, x in images.images.items()}  # grey
    tensors = train_networks(pixels["train"], images.labels["train"], chosen, CLASSES, config["batch"], generator)
    tested = slice(config["tested"])
    accuracy = accuracies(tensors, chosen.tanh, pixels["test"][tested], images.labels["test"][tested])
    return {**tensors, **chosen.columns(), "accuracy": accuracy}


def _report(zoo: Zoo, folder: Path) -> None:
    for split, networks in zoo.splits.items():
        low, mean, high = (100 * float(f(networks.accuracy)) for f in (torch.min, torch.mean, torch.max))
        print(f"{split}: {len(networks):,} networks, test accuracy {mean:.1f} % (from {low:.1f} to {high:.1f})")
    draw_zoo(folder / "zoo.png", zoo)
    print(f"{folder}: manifest.json, zoo.png, shards")


if __name__ == "__main__":
    sys.exit(run("examples/make_cnn_zoo", main))
