"""Sets of networks on disk: a manifest that says what a set is, and shards that appear whole or not at all.

    manifest.json               the configuration that made the set
    train-00000.safetensors     weights, and what else is known of some hundred networks
    validation-00000.safetensors, test-00000.safetensors

A shard holds its checksum and the digest of the configuration, so that neither a damaged nor a foreign one is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.data import SPLITS
from tasks.task import Split

FORMAT = 1  # raise it when what the files hold changes
MANIFEST = "manifest.json"


class Damaged(InvalidInput):
    """A shard that cannot be used; the message names it."""


@dataclass(frozen=True)
class Shard:
    """The networks start .. stop - 1 of a split, and the file that holds them."""

    split: Split
    start: int
    stop: int
    path: Path


def digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, dict(config)], sort_keys=True).encode()).hexdigest()[:16]


def shards(folder: Path, config: Mapping[str, Any]) -> Iterator[Shard]:
    """All shards of a set, in order, whether or not they are there."""
    for split in SPLITS:
        for number, start in enumerate(range(0, config[split], config["shard"])):
            stop = min(start + config["shard"], config[split])
            yield Shard(split, start, stop, folder / f"{split}-{number:05}.safetensors")


def generator_of(shard: Shard, config: Mapping[str, Any]) -> torch.Generator:
    """Random numbers of its own for each shard, so that it does not matter which ones are there already."""
    sequence = np.random.SeedSequence([config["seed"], SPLITS.index(shard.split), shard.start])
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


# --- writing ---------------------------------------------------------------------------------------------------------


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that what it holds was made with the same configuration.

    Raises:
        InvalidInput: the folder holds a set of another configuration, or shards without a manifest, or no folder can
            be made there.
    """
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        if changed := [f"{k}={found.get(k)!r}" for k in {**found, **config} if found.get(k) != config.get(k)]:
            raise InvalidInput(
                f"folder: {str(folder)!r} holds a set made with {', '.join(changed)}. Give another folder=, or remove "
                "that one"
            )
        return
    if next(folder.glob("*.safetensors"), None) is not None:
        raise InvalidInput(f"folder: {str(folder)!r} holds .safetensors files and no {MANIFEST}. Give another folder=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "config": dict(config)}, indent=1) + "\n"
        _atomically(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"folder: {str(folder)!r} cannot be written ({error}). Give another folder=") from None


def write_shard(shard: Shard, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes the rows of a shard; whoever reads sees a whole file or none."""
    kept = {name: t.contiguous() for name, t in tensors.items()}
    metadata = {"digest": digest(config), "checksum": _checksum(kept)}
    _atomically(shard.path, lambda path: save_file(kept, path, metadata))


def _atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what a killed process left half-written."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy().data, zlib.crc32(name.encode(), total))
    return str(total)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The configuration of a set.

    Raises:
        InvalidInput: no manifest, a damaged one, or one of another format.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, config = content["format"], content["config"]
        complete = isinstance(config, dict) and {*SPLITS, "shard", "data"} <= config.keys()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"folder: {path} cannot be read ({type(error).__name__}). Remove the folder") from None
    if version != FORMAT or not complete:
        raise InvalidInput(f"folder: {path} has format {version}, this version reads {FORMAT}. Make the set anew")
    return config


def read_shard(shard: Shard, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a shard.

    Raises:
        Damaged: the file is cut off, changed, or made with another configuration.
    """
    try:
        with safe_open(shard.path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise Damaged(f"shard {shard.path} cannot be read ({str(error).splitlines()[0]})") from None
    if metadata.get("digest") != digest(config):
        raise Damaged(f"shard {shard.path} was made with another configuration")
    if metadata.get("checksum") != _checksum(tensors):
        raise Damaged(f"shard {shard.path} is damaged: its checksum is wrong")
    return tensors


def sound(shard: Shard, config: Mapping[str, Any], console: Console) -> bool:
    """Whether a shard is there; one that is damaged is named, and to be made again."""
    if not shard.path.is_file():
        return False
    try:
        read_shard(shard, config)
    except Damaged as error:
        console.print(f"{error}; it is made again", soft_wrap=True)
        return False
    return True
