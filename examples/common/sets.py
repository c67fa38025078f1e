"""Sets of networks for any example, in the files that shards.py describes.

`make_set` makes the shards that are missing or damaged; `load_set` reads what is sound, and says how to make the rest.
"""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from torch import Tensor

from examples.common.shards import (
    MANIFEST,
    Damaged,
    Shard,
    begin,
    generator_of,
    read_manifest,
    read_shard,
    shards,
    sound,
    sweep,
    write_shard,
)
from lopt.errors import InvalidInput, unknown
from tasks.data import SPLITS
from tasks.task import Split

Rows: TypeAlias = dict[str, Tensor]  # name -> [N, ...]: weights, and what else is known of each network
MakeShard: TypeAlias = Callable[[Shard, torch.Generator], Mapping[str, Tensor]]


@dataclass(frozen=True)
class NetworkSet:
    """What `load_set` returns: the rows of every split, how the set was made, and the shards that were left out."""

    splits: dict[Split, Rows]
    config: dict[str, Any]
    damaged: tuple[Path, ...]


def command_line(program: str, folder: Path | str, config: Mapping[str, Any]) -> str:
    """The command that makes a set.

    >>> command_line("examples.make_cnn_zoo", "out/zoo", {"data": "digits", "lr": [0.1, 1.0]})
    "python -m examples.make_cnn_zoo folder=out/zoo data=digits 'lr=[0.1,1.0]'"
    """
    words = [f"{key}={json.dumps(v, separators=(',', ':')) if isinstance(v, list) else v}" for key, v in config.items()]
    return shlex.join(["python", "-m", program, f"folder={folder}", *words])


def make_set(folder: Path, config: Mapping[str, Any], make: MakeShard, console: Console) -> None:
    """Makes what is missing of a set. What ends it, the same call goes on, and ends with the same numbers.

    Args:
        config: all that the numbers depend on, with the keys data, shard, seed, and a count for each split.
        make: the rows of a shard, all random numbers drawn from the generator that it gets.

    Raises:
        InvalidInput: the folder holds a set of another configuration, or cannot be written.
    """
    begin(folder, config)
    sweep(folder)
    every = sorted(shards(folder, config), key=lambda shard: config[shard.split])  # so a part can be used early
    for number, shard in enumerate(every, 1):
        if sound(shard, config, console):
            continue
        write_shard(shard, config, make(shard, generator_of(shard, config)))
        console.print(f"{number} of {len(every)} shards: {shard.path.name}")


def load_set(
    folder: Path | str,
    program: str,
    data: str,
    counts: Mapping[str, int] | None = None,
    *,
    noun: str = "networks",
    elsewhere: Path | str | None = None,
    stacklevel: int = 1,
) -> NetworkSet:
    """A set that `make_set` has made.

    Args:
        program: the module that makes such sets, for what errors say.
        data: the data set that it must be of.
        counts: how many networks of a split to use, the first ones; all of the splits that are not named. A set that
            is still being made serves as far as its shards go.
        noun: what errors call its networks.
        elsewhere: where a set of `data` would go, for the error when this one is of other data; None: beside this one.
        stacklevel: whom warnings point at: 1 the caller, 2 the caller's caller.

    Damaged shards are left out, with a warning that names them.

    Raises:
        InvalidInput: the folder is missing, of another data set, half-written, or without a sound shard of some split;
            with the command that makes it.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        made = command_line(program, folder, {"data": data})
        raise InvalidInput(f"folder: there is no set of {noun} in {str(folder)!r}. Make it with\n  {made}")
    config = read_manifest(folder)
    if config["data"] != data:
        made = command_line(program, elsewhere or f"{folder}_{data}", {"data": data})
        raise InvalidInput(
            f"folder: {str(folder)!r} holds {noun} of {config['data']!r}, wanted {data!r}. Give another folder=, or "
            f"make the set with\n  {made}"
        )
    limits = _limits(folder, config, counts or {}, noun)
    remedy = command_line(program, folder, config)
    wanted = _wanted(folder, config, limits, remedy)
    parts, damaged = _read(config, wanted, limits, remedy, stacklevel + 2)
    splits: dict[Split, Rows] = {}
    for split, pieces in parts.items():
        if not pieces:
            raise InvalidInput(
                f"folder: no shard of the {split} split in {str(folder)!r} is sound. Make them again with\n  {remedy}"
            )
        splits[split] = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return NetworkSet(splits, config, damaged)


def _limits(folder: Path, config: Mapping[str, Any], counts: Mapping[str, int], noun: str) -> dict[str, int]:
    limits: dict[str, int] = {split: config[split] for split in SPLITS} | dict(counts)
    for split, count in limits.items():
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if not 1 <= count <= config[split]:
            raise InvalidInput(f"{split}: {count}; the set in {str(folder)!r} has {config[split]} {split} {noun}")
    return limits


def _wanted(folder: Path, config: Mapping[str, Any], limits: Mapping[str, int], remedy: str) -> list[Shard]:
    wanted = [shard for shard in shards(folder, config) if shard.start < limits[shard.split]]
    if missing := [shard for shard in wanted if not shard.path.is_file()]:
        raise InvalidInput(
            f"folder: {str(folder)!r} is half-written: {len(missing)} of {len(wanted)} shards are missing, the first "
            f"{missing[0].path.name}. Finish it with\n  {remedy}"
        )
    return wanted


def _read(
    config: dict[str, Any], wanted: list[Shard], limits: Mapping[str, int], remedy: str, stacklevel: int
) -> tuple[dict[Split, list[Rows]], tuple[Path, ...]]:
    """The rows of every sound shard, by split, and the shards that are left out."""
    parts: dict[Split, list[Rows]] = {split: [] for split in SPLITS}
    damaged = []
    for shard in wanted:
        try:
            found = read_shard(shard, config)
        except Damaged as error:
            damaged.append(shard.path)
            warnings.warn(f"{error}; it is left out. Make it again with\n  {remedy}", stacklevel=stacklevel)
            continue
        stop = limits[shard.split] - shard.start
        parts[shard.split].append({name: rows[:stop] for name, rows in found.items()})
    return parts, tuple(damaged)
