"""A set of INRs on disk: a manifest that says what the set is, and shards that appear whole or not at all.

    manifest.json               the configuration that made the set
    train-00000.safetensors     weights, label, PSNR and position in its split of some hundred fitted images
    validation-00000.safetensors, test-00000.safetensors

A shard holds its checksum and the digest of the configuration, so that neither a damaged nor a foreign one is used.
`load_inrs` is what the examples read a set with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lopt.errors import InvalidInput, unknown
from lopt.weight_space import WeightSpace
from tasks.data import SPLITS
from tasks.task import Split

FORMAT = 1  # raise it when what the files hold changes
MANIFEST = "manifest.json"
ABOUT = ("label", "psnr", "index")  # what a shard holds besides the weights


class Damaged(InvalidInput):
    """A shard that cannot be used; the message names it."""


@dataclass(frozen=True)
class Shard:
    """The images start .. stop - 1 of a split, and the file with their INRs."""

    split: Split
    start: int
    stop: int
    path: Path


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


def command(config: Mapping[str, Any], folder: Path | str) -> str:
    """The command that makes a set.

    >>> command({"data": "mnist", "hidden": [32, 32]}, "out/inrs/mnist")
    "python -m examples.make_inrs folder=out/inrs/mnist data=mnist 'hidden=[32,32]'"
    """
    words = [f"folder={folder}"]
    words += [f"{key}={json.dumps(v) if isinstance(v, list) else v}".replace(", ", ",") for key, v in config.items()]
    return shlex.join(["python", "-m", "examples.make_inrs", *words])


def digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, dict(config)], sort_keys=True).encode()).hexdigest()[:16]


def shards(folder: Path, config: Mapping[str, Any]) -> Iterator[Shard]:
    """All shards of a set, in order, whether or not they are there."""
    for split in SPLITS:
        for number, start in enumerate(range(0, config[split], config["shard"])):
            stop = min(start + config["shard"], config[split])
            yield Shard(split, start, stop, folder / f"{split}-{number:05}.safetensors")


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
    """Writes weights, label, psnr and index of a shard's images; whoever reads sees a whole file or none."""
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
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        made = command({"data": data}, folder)
        raise InvalidInput(f"folder: there is no set of INRs in {str(folder)!r}. Make it with\n  {made}")
    config = read_manifest(folder)
    if config["data"] != data:
        raise InvalidInput(
            f"folder: {str(folder)!r} holds INRs of {config['data']!r}, wanted {data!r}. Give another folder=, or make "
            f"the set with\n  {command({'data': data}, f'out/inrs/{data}')}"
        )
    limits: dict[str, int] = {split: config[split] for split in SPLITS} | dict(counts or {})
    for split, count in limits.items():
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if not 1 <= count <= config[split]:
            raise InvalidInput(f"{split}: {count}; the set in {str(folder)!r} has {config[split]} {split} INRs")
    wanted = [shard for shard in shards(folder, config) if shard.start < limits[shard.split]]
    if missing := [shard for shard in wanted if not shard.path.is_file()]:
        raise InvalidInput(
            f"folder: {str(folder)!r} is half-written: {len(missing)} of {len(wanted)} shards are missing, the first "
            f"{missing[0].path.name}. Finish it with\n  {command(config, folder)}"
        )
    return _assemble(folder, config, wanted, limits)


def _assemble(folder: Path, config: dict[str, Any], wanted: list[Shard], limits: Mapping[str, int]) -> InrSet:
    parts: dict[Split, list[dict[str, Tensor]]] = {split: [] for split in SPLITS}
    damaged = []
    for shard in wanted:
        try:
            found = read_shard(shard, config)
        except Damaged as error:
            damaged.append(shard.path)
            warnings.warn(f"{error}; it is left out. Make it again with\n  {command(config, folder)}", stacklevel=3)
            continue
        stop = limits[shard.split] - shard.start
        parts[shard.split].append({name: t[:stop] for name, t in found.items()})
    splits: dict[Split, Inrs] = {}
    for split, pieces in parts.items():
        if not pieces:
            raise InvalidInput(
                f"folder: no shard of the {split} split in {str(folder)!r} is sound. Make them again with\n  "
                f"{command(config, folder)}"
            )
        whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        names = sorted(whole.keys() - set(ABOUT), key=_place)  # in the order of the layers, a bias after its weight
        splits[split] = Inrs({name: whole[name] for name in names}, *(whole[name] for name in ABOUT))
    space = WeightSpace.linear_stack({name: x.shape[1:] for name, x in splits["train"].tensors.items()})
    return InrSet(splits, space, config, tuple(damaged))


def _place(name: str) -> tuple[int, bool]:
    layer, kind = name.split(".")
    return int(layer), kind == "bias"
