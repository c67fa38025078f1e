"""Image data sets as tensors: split once, resized, and kept on disk.

How the parts fit: `image_sources.py` says what there is and reads it as bytes; `_build` splits and resizes that;
`_cached` keeps the result under `$LOPT_CACHE`, so that this happens once a size. `load_images` checks its arguments,
then scales and selects.

Legend of shapes: N images, C channels, H = W = size pixels.
"""

from __future__ import annotations

import hashlib
import os
import uuid
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.arguments import check_positive, floating_dtype, usable_device
from tasks.image_sources import image_origin, image_source, parquet_files, read_tables
from tasks.task import Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_CACHE_FORMAT = "1"  # raise it when the split, the resampling or the stored form changes
_SPLIT_SEED = 2301
_VALIDATION_SHARE = 0.1  # of the train rows of a hub data set
_CHUNK = 1000  # images resized at a time
_SMALLEST_STD = 1e-6  # a channel that never varies stays at zero instead of dividing by zero

Images = dict[Split, tuple[Tensor, Tensor]]  # images (N, C, H, W) and labels (N,) of every split


@dataclass(frozen=True)
class ImageData:
    """A data set on a device: for every split images (N, C, H, W) and labels (N,) in 0 .. classes - 1."""

    name: str
    images: dict[Split, Tensor]
    labels: dict[Split, Tensor]
    classes: int


def load_images(
    name: str,
    size: int = 8,
    standardise: bool = True,
    classes: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
) -> ImageData:
    """A data set as tensors, split into train, validation and test; the same split at every call.

    The hub data sets keep their own test rows and give a tenth of their train rows to validation; `digits` is split
    60/20/20. Every split is shuffled, so that its first rows are a fair sample. The first load of a data set at a size
    decodes and resizes it (antialiased bilinear) and keeps it under `$LOPT_CACHE` (default `~/.cache/lopt`).

    Args:
        name: one of `DATA_SETS`. All but `digits` are read from `$LOPT_DATA/<name>/{train,test}.parquet`, or from the
            Hugging Face hub where LOPT_DATA is not set.
        size: height and width of the images.
        standardise: bring every channel to mean 0 and standard deviation 1 over the train split; else pixels lie in
            [0, 1]. With `classes`, over the train images that are kept.
        classes: keep these classes only, and relabel them 0, 1, ... in the order given.
        device: where the tensors go.
        dtype: a floating dtype, or its name.

    Raises:
        InvalidInput: an argument, LOPT_DATA or a file in it cannot be used, or the hub cannot be reached.

    >>> data = load_images("digits", classes=[3, 7])
    >>> data.images["train"].shape[1:], data.classes, data.labels["test"].unique().tolist()
    (torch.Size([1, 8, 8]), 2, [0, 1])
    """
    kept = check_images(name, size, classes)
    dtype, device = floating_dtype(dtype), usable_device(device)
    white = image_source(name).white
    images: dict[Split, Tensor] = {}
    labels: dict[Split, Tensor] = {}
    for split, (pixels, label) in _cached(name, size).items():
        if classes is not None:
            pixels, label = _select(pixels, label, kept)
        if not len(label):
            raise InvalidInput(f"data {name!r}: the {split} split holds no image of the classes {kept}. Keep more")
        # Statistics are taken in float32 at least, whatever the images are to become.
        images[split] = pixels.to(torch.promote_types(dtype, torch.float32)) / white
        labels[split] = label.to(device)
    if standardise:
        std, mean = torch.std_mean(images["train"], dim=(0, 2, 3), keepdim=True)
        images = {split: (x - mean) / std.clamp_min(_SMALLEST_STD) for split, x in images.items()}
    return ImageData(name, {split: x.to(device, dtype) for split, x in images.items()}, labels, len(kept))


# --- arguments -------------------------------------------------------------------------------------------------------


def check_images(name: str, size: int, classes: Sequence[int] | None) -> list[int]:
    """Raises `InvalidInput` where `load_images` could not even start; returns the classes to keep."""
    source = image_source(name)
    check_positive("size", size)
    parquet_files(name)
    return _check_classes(name, classes, source.classes)


def _check_classes(name: str, classes: Sequence[int] | None, count: int) -> list[int]:
    if classes is None:
        return list(range(count))
    rule = f"Give at least two different ones of the classes 0 .. {count - 1} of {name!r}, or None for all"
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise InvalidInput(f"classes={classes!r} is no list. {rule}")
    kept = list(classes)
    wrong = [c for c in kept if isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < count]
    if wrong:
        raise InvalidInput(f"classes={kept}: {wrong} are no classes. {rule}")
    if len(set(kept)) < max(2, len(kept)):
        raise InvalidInput(f"classes={kept}: {'some are repeated' if len(kept) > 1 else 'too few'}. {rule}")
    return kept


def _select(images: Tensor, labels: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    relabelled = torch.full((max(classes) + 1,), -1)
    relabelled[classes] = torch.arange(len(classes))
    keep = torch.isin(labels, torch.tensor(classes))
    return images[keep], relabelled[labels[keep]]


# --- cache -----------------------------------------------------------------------------------------------------------


def _cached(name: str, size: int) -> Images:
    """The splits from the cache if all of them are there and sound, else built and stored."""
    origin = image_origin(name)
    root = Path(os.environ.get("LOPT_CACHE") or "~/.cache/lopt").expanduser() / "images"
    digest = hashlib.sha256(origin.encode()).hexdigest()[:8]
    paths: dict[Split, Path] = {split: root / f"{name}-{digest}-{size}-{split}.safetensors" for split in SPLITS}
    stored: Images = {}
    for split, path in paths.items():
        if (pair := _read_cache(path, origin)) is not None:
            stored[split] = pair
    if len(stored) == len(SPLITS):
        return stored
    built = _build(name, size)
    try:
        for split, path in paths.items():
            _write_cache(path, origin, *built[split])
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{name} is not kept in the cache ({error}). Set LOPT_CACHE to a writable folder", stacklevel=3)
    return built


def _checksum(images: Tensor, labels: Tensor) -> str:
    return str(zlib.crc32(labels.numpy().data, zlib.crc32(images.numpy().data)))


def _read_cache(path: Path, origin: str) -> tuple[Tensor, Tensor] | None:
    """Images and labels, or None where the file is missing, damaged, or of another format or origin."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _CACHE_FORMAT or metadata.get("origin") != origin:
                return None
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (OSError, SafetensorError):
        return None
    return (images, labels) if metadata.get("checksum") == _checksum(images, labels) else None


def _write_cache(path: Path, origin: str, images: Tensor, labels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": _CACHE_FORMAT, "origin": origin, "checksum": _checksum(images, labels)}
    # Under a name of its own first: whoever reads or writes at the same time sees a whole file or none.
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        save_file({"images": images, "labels": labels}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- building --------------------------------------------------------------------------------------------------------


def _build(name: str, size: int) -> Images:
    """Reads, splits and resizes. Pixels keep the source's scale, 0 .. white."""
    tables = read_tables(name)
    built: Images = {}
    for split, (table, rows) in _rows({table: len(labels) for table, (_, labels) in tables.items()}).items():
        images, labels = tables[table]
        built[split] = _resize(images, rows, size), labels[rows]
    return built


def _rows(counts: Mapping[str, int]) -> dict[Split, tuple[str, Tensor]]:
    """Which rows of which table make each split, shuffled."""
    # NumPy promises that the stream of this generator never changes; PyTorch makes no such promise.
    random = np.random.RandomState(_SPLIT_SEED)
    order = {table: torch.from_numpy(random.permutation(count)).long() for table, count in counts.items()}
    if "all" in order:
        count = counts["all"]
        train, validation, test = order["all"].tensor_split([count * 6 // 10, count * 8 // 10])
        return {"train": ("all", train), "validation": ("all", validation), "test": ("all", test)}
    validation, train = order["train"].tensor_split([round(counts["train"] * _VALIDATION_SHARE)])
    return {"train": ("train", train), "validation": ("train", validation), "test": ("test", order["test"])}


def _resize(images: Tensor, index: Tensor, size: int) -> Tensor:
    """The rows `index` at another size, as float32; at their own size they stay the bytes that they are."""
    if size == images.shape[-1]:
        return images[index]
    resized = torch.empty(len(index), images.shape[1], size, size)
    for out, rows in zip(resized.split(_CHUNK), index.split(_CHUNK), strict=True):
        out.copy_(F.interpolate(images[rows].float(), (size, size), mode="bilinear", antialias=True))
    return resized
