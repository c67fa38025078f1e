"""A set of INRs on disk: the shards of examples/common/sets.py, with weights, and for each INR what it fits.

`load_inrs` is what the examples read a set with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from examples.common.mlps import layers_of, space_of
from examples.common.sets import load_set
from lopt.weight_space import WeightSpace
from tasks.task import Split

PROGRAM = "examples.make_inrs"


@dataclass(frozen=True)
class Inrs:
    """The INRs of one split: weights by name [N, *shape], and for each the label, PSNR in dB, and image that it fits.

    `index` counts through the split of the images as `tasks.load_images` returns it.
    """

    tensors: dict[str, Tensor]
    label: Tensor
    psnr: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class InrSet:
    """What `load_inrs` returns: the splits, the weight space of one INR, and how the set was made."""

    splits: dict[Split, Inrs]
    space: WeightSpace
    config: dict[str, Any]
    damaged: tuple[Path, ...]  # shards that were left out


def load_inrs(folder: Path | str, data: str, counts: Mapping[str, int] | None = None) -> InrSet:
    """A set of INRs that `python -m examples.make_inrs` has made.

    Args:
        folder: where it lies.
        data: the image data set that it must be of.
        counts: how many INRs of a split to use, the first ones; all of the splits that are not named. A set that is
            still being made serves as far as its shards go.

    Damaged shards are left out, with a warning that names them.

    Raises:
        InvalidInput: the folder is missing, of another data set, half-written, or without a sound shard of some split;
            with the command that makes it.
    """
    elsewhere = f"out/inrs/{data}"
    found = load_set(folder, PROGRAM, data, counts, noun="INRs", elsewhere=elsewhere, stacklevel=2)
    splits: dict[Split, Inrs] = {
        split: Inrs(layers_of(rows), rows["label"], rows["psnr"], rows["index"]) for split, rows in found.splits.items()
    }
    return InrSet(splits, space_of(splits["train"].tensors), found.config, found.damaged)
