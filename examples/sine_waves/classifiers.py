r"""What is adapted: small MLPs, each trained to tell two classes of images apart; and the domain that they adapt to.

The target domain shows every image turned by a random angle, perhaps mirrored, brighter or darker, with more or less
contrast, and noisy.

Legend of shapes: B classifiers, M images of each, P = S * S pixels, n, m neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from examples.common.mlps import forward, layers_of, space_of
from examples.common.sets import load_set, make_set
from examples.common.shards import Shard
from examples.common.training import Batch
from lopt.weight_space import WeightSpace
from tasks import ImageData, load_images
from tasks.arguments import check_at_least, check_positive, check_widths
from tasks.data import SPLITS
from tasks.task import Split

PROGRAM = "examples.sine_waves"
CHUNK = 50  # classifiers trained together


class Images:
    """Grey images by class, so that images of any two classes can be drawn: [K, N, P], N those of the rarest class."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        grey = images.mean(1).flatten(1)
        least = int(torch.bincount(labels, minlength=classes).min())
        self.by_class = torch.stack([grey[labels == label][:least] for label in range(classes)])

    def draw(self, pairs: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images of either class of each pair, and which of the two: pairs [B, 2] -> [B, M, P], [B, M]."""
        which = torch.randint(2, (len(pairs), count), generator=generator)
        place = torch.randint(self.by_class.shape[1], which.shape, generator=generator)
        return self.by_class[pairs.gather(1, which), place], which


@dataclass(frozen=True)
class Corruption:
    """The target domain.

    Args:
        degrees: the largest angle.
        noise: standard deviation of what is added to a pixel; a channel of the data set has a standard deviation of 1.
        jitter: the largest change of brightness, and of the logarithm of the contrast.
    """

    degrees: float = 30.0
    noise: float = 0.3
    jitter: float = 0.3

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """[B, M, P] -> [B, M, P], each image in its own way."""
        size = math.isqrt(images.shape[-1])
        flat = images.reshape(-1, 1, size, size)

        def uniform(width: float) -> Tensor:
            return (2 * torch.rand(len(flat), generator=generator) - 1) * width

        angle = torch.deg2rad(uniform(self.degrees))
        mirror = torch.randint(2, (len(flat),), generator=generator) * 2.0 - 1
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        turn = torch.stack([cos * mirror, -sin, zero, sin * mirror, cos, zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(turn, list(flat.shape), align_corners=False)
        turned = F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view_as(images)
        contrast, brightness = (uniform(self.jitter).view(*images.shape[:2], 1) for _ in range(2))
        return turned * contrast.exp() + brightness + self.noise * torch.randn(images.shape, generator=generator)


def classify(tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Logits of MLPs with ReLU, each on its own images: [B, M, P] -> [B, M, 2]."""
    return forward(list(tensors.values()), images, torch.relu)


def accuracies(tensors: Mapping[str, Tensor], images: Tensor, which: Tensor) -> Tensor:
    """[B]: the share of the images [B, M, P] that each classifier gets right."""
    return (classify(tensors, images).argmax(-1) == which).float().mean(1)


@dataclass(frozen=True)
class ClassifierSet:
    """Classifiers and their pairs of classes by split, the weight space of one, the images by split, the settings."""

    splits: dict[Split, Batch]
    space: WeightSpace
    images: dict[Split, Images]
    config: dict[str, Any]


def make_binary_classifiers(folder: Path, config: Mapping[str, Any], console: Console) -> ClassifierSet:
    """Makes what is missing of a set, and reads it.

    Args:
        config: all that the numbers depend on: `classifiers` of configs/examples/sine_waves.yaml.

    Raises:
        InvalidInput: a setting cannot be used, or the folder holds a set of another configuration.
    """
    for key in ("size", "steps", "batch", "shard", *SPLITS):
        check_positive(key, config[key])
    check_widths("hidden", config["hidden"], least=1)
    check_at_least("lr", config["lr"], 0.0)
    data = load_images(config["data"], config["size"])
    images: dict[Split, Images] = {
        split: Images(data.images[split], data.labels[split], data.classes) for split in SPLITS
    }
    make_set(folder, config, partial(_make, config, data, images["train"]), console)
    found = load_set(folder, PROGRAM, config["data"])
    splits: dict[Split, Batch] = {
        split: Batch(layers_of(rows), rows["classes"]) for split, rows in found.splits.items()
    }
    return ClassifierSet(splits, space_of(splits["train"].tensors), images, found.config)


def _make(
    config: Mapping[str, Any], data: ImageData, images: Images, shard: Shard, generator: torch.Generator
) -> dict[str, Tensor]:
    """A shard: each classifier has two classes of its own."""
    count = shard.stop - shard.start
    pairs = torch.rand(count, data.classes, generator=generator).argsort(1)[:, :2]
    parts = [train_classifiers(images, some, config, generator) for some in pairs.split(CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} | {"classes": pairs}


def train_classifiers(
    images: Images, pairs: Tensor, config: Mapping[str, Any], generator: torch.Generator
) -> dict[str, Tensor]:
    """Trains a classifier for each pair of classes [B, 2] by Adam: name -> [B, *S]. See waves.py on one optimizer."""
    widths = [images.by_class.shape[-1], *config["hidden"], 2]
    leaves: dict[str, Tensor] = {}
    for layer, (m, n) in enumerate(zip(widths, widths[1:], strict=False)):
        weight = torch.randn(len(pairs), n, m, generator=generator) * math.sqrt(2 / m)
        leaves[f"{2 * layer}.weight"] = weight.requires_grad_()
        leaves[f"{2 * layer}.bias"] = torch.zeros(len(pairs), n, requires_grad=True)
    optimizer = torch.optim.Adam(leaves.values(), config["lr"])
    for _ in range(config["steps"]):
        shown, which = images.draw(pairs, config["batch"], generator)
        optimizer.zero_grad()
        said = classify(leaves, shown).flatten(0, 1)
        (F.cross_entropy(said, which.flatten(), reduction="sum") / config["batch"]).backward()
        optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}
