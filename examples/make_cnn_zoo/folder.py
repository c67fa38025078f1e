"""A zoo on disk: the shards of examples/common/sets.py, with weights, test accuracies and hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from examples.common.sets import load_set
from examples.make_cnn_zoo.hyper_parameters import HyperParameters
from examples.make_cnn_zoo.training import shapes
from lopt.weight_space import WeightSpace
from tasks.task import Split

PROGRAM = "examples.make_cnn_zoo"
# Channels are permuted; the image's one channel, the taps of a kernel and the classes are fixed.
SPACE = WeightSpace(
    {
        "0.weight": "c0:16, in=1, 3, 3",
        "0.bias": "c0:16",
        "2.weight": "c1:16, c0:16, 3, 3",
        "2.bias": "c1:16",
        "4.weight": "c2:16, c1:16, 3, 3",
        "4.bias": "c2:16",
        "8.weight": "out=10, c2:16",
        "8.bias": "out=10",
    }
)


@dataclass(frozen=True)
class Networks:
    """The networks of one split: weights by name [N, *shape], test accuracy [N] in 0 .. 1, and their training."""

    tensors: dict[str, Tensor]
    accuracy: Tensor
    chosen: HyperParameters

    def __len__(self) -> int:
        return len(self.accuracy)


@dataclass(frozen=True)
class Zoo:
    """What `load_zoo` returns: the splits, the weight space of one network, and how the zoo was made."""

    splits: dict[Split, Networks]
    space: WeightSpace
    config: dict[str, Any]
    damaged: tuple[Path, ...]  # shards that were left out


def load_zoo(folder: Path | str, data: str, counts: Mapping[str, int] | None = None) -> Zoo:
    """A zoo that `python -m examples.make_cnn_zoo` has made.

    Args:
        folder: where it lies.
        data: the image data set that its networks classify.
        counts: how many networks of a split to use, the first ones; all of the splits that are not named.

    Damaged shards are left out, with a warning that names them.

    Raises:
        InvalidInput: the folder is missing, of another data set, half-written, or without a sound shard of some split;
            with the command that makes it.
    """
    found = load_set(folder, PROGRAM, data, counts, stacklevel=2)
    splits: dict[Split, Networks] = {}
    for split, rows in found.splits.items():
        tensors = {name: rows.pop(name) for name in shapes(10)}
        splits[split] = Networks(tensors, rows.pop("accuracy"), HyperParameters(**rows))
    return Zoo(splits, SPACE, found.config, found.damaged)
