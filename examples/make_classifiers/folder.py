"""A set of classifiers on disk: each before and after its training, and how well it then does.

The files are those of `examples/common/sets.py`; a shard holds `initial/<name>` and `final/<name>` for every
parameter, and the test `loss` and `accuracy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from examples.common.sets import command_line, load_set
from lopt.errors import InvalidInput
from tasks.task import Split

PROGRAM = "examples.make_classifiers"
STATES = ("initial", "final")


@dataclass(frozen=True)
class Classifiers:
    """The networks of one split: weights by name [N, *shape], and test loss and accuracy [N] after training."""

    initial: dict[str, Tensor]
    final: dict[str, Tensor]
    loss: Tensor
    accuracy: Tensor

    def __len__(self) -> int:
        return len(self.accuracy)


@dataclass(frozen=True)
class ClassifierSet:
    """What `load_classifiers` returns: the splits, and how the set was made."""

    splits: dict[Split, Classifiers]
    config: dict[str, Any]
    damaged: tuple[Path, ...]  # shards that were left out


def load_classifiers(
    folder: Path | str, data: str, network: str, counts: Mapping[str, int] | None = None
) -> ClassifierSet:
    """A set that `python -m examples.make_classifiers` has made.

    Args:
        data, network: what it must be of.
        counts: how many networks of a split to use, the first ones; all of the splits that are not named.

    Raises:
        InvalidInput: as `examples.common.sets.load_set`; or it holds networks of another kind.
    """
    found = load_set(folder, PROGRAM, data, counts, stacklevel=2)
    if found.config["network"] != network:
        made = command_line(PROGRAM, f"{folder}_{network}", {"data": data, "network": network})
        raise InvalidInput(
            f"folder: {str(folder)!r} holds networks of the kind {found.config['network']!r}, wanted {network!r}. Give "
            f"another folder=, or make the set with\n  {made}"
        )
    splits: dict[Split, Classifiers] = {split: _classifiers(tensors) for split, tensors in found.splits.items()}
    return ClassifierSet(splits, found.config, found.damaged)


def _classifiers(tensors: Mapping[str, Tensor]) -> Classifiers:
    initial, final = (
        {name.removeprefix(f"{state}/"): x for name, x in tensors.items() if name.startswith(f"{state}/")}
        for state in STATES
    )
    return Classifiers(initial, final, tensors["loss"], tensors["accuracy"])
