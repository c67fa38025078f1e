"""Sets of networks on disk for any example, in the form that examples/make_inrs/folder.py describes.

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

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from examples.make_inrs.folder import MANIFEST, Damaged, Shard, begin, read_manifest, read_shard, shards, sweep
from examples.make_inrs.folder import write_shard as write
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
        if _sound(shard, config, console):
            continue
        # Random numbers of its own for each shard, so that it does not matter which ones are there already.
        sequence = np.random.SeedSequence([config["seed"], SPLITS.index(shard.split), shard.start])
        generator = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
        write(shard, config, make(shard, generator))
        console.print(f"{number} of {len(every)} shards: {shard.path.name}")


def _sound(shard: Shard, config: Mapping[str, Any], console: Console) -> bool:
    if not shard.path.is_file():
        return False
    try:
        read_shard(shard, config)
    except Damaged as error:
        console.print(f"{error}; it is made again", soft_wrap=True)
        return False
    return True


def load_set(folder: Path | str, program: str, data: str, counts: Mapping[str, int] | None = None) -> NetworkSet:
    """A set that `make_set` has made.

    Args:
        program: the module that makes such sets, for what errors say.
        data: the data set that it must be of.
        counts: how many networks of a split to use, the first ones; all of the splits that are not named.

    Damaged shards are left out, with a warning that names them.

    Raises:
        InvalidInput: the folder is missing, of another data set, half-written, or without a sound shard of some split;
            with the command that makes it.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        made = command_line(program, folder, {"data": data})
        raise InvalidInput(f"folder: there is no set of networks in {str(folder)!r}. Make it with\n  {made}")
    config = read_manifest(folder)
    if config["data"] != data:
        made = command_line(program, f"{folder}_{data}", {"data": data})
        raise InvalidInput(
            f"folder: {str(folder)!r} holds networks of {config['data']!r}, wanted {data!r}. Give another folder=, or "
            f"make the set with\n  {made}"
        )
    limits = _limits(folder, config, counts or {})
    wanted = [shard for shard in shards(folder, config) if shard.start < limits[shard.split]]
    remedy = command_line(program, folder, config)
    if missing := [shard for shard in wanted if not shard.path.is_file()]:
        raise InvalidInput(
            f"folder: {str(folder)!r} is half-written: {len(missing)} of {len(wanted)} shards are missing, the first "
            f"{missing[0].path.name}. Finish it with\n  {remedy}"
        )
    return _read(folder, config, wanted, limits, remedy)


def _limits(folder: Path, config: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, int]:
    limits: dict[str, int] = {split: config[split] for split in SPLITS} | dict(counts)
    for split, count in limits.items():
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if not 1 <= count <= config[split]:
            raise InvalidInput(f"{split}: {count}; the set in {str(folder)!r} has {config[split]} {split} networks")
    return limits


def _read(
    folder: Path, config: dict[str, Any], wanted: list[Shard], limits: Mapping[str, int], remedy: str
) -> NetworkSet:
    parts: dict[Split, list[Rows]] = {split: [] for split in SPLITS}
    damaged = []
    for shard in wanted:
        try:
            found = read_shard(shard, config)
        except Damaged as error:
            damaged.append(shard.path)
            warnings.warn(f"{error}; it is left out. Make it again with\n  {remedy}", stacklevel=3)
            continue
        stop = limits[shard.split] - shard.start
        parts[shard.split].append({name: rows[:stop] for name, rows in found.items()})
    for split, pieces in parts.items():
        if not pieces:
            raise InvalidInput(
                f"folder: no shard of the {split} split in {str(folder)!r} is sound. Make them again with\n  {remedy}"
            )
    splits: dict[Split, Rows] = {
        split: {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        for split, pieces in parts.items()
    }
    return NetworkSet(splits, config, tuple(damaged))
