"""The zoo's image models: up to two of every family that `timm` knows, as small as they come, on small images."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmark.timm_import import load_timm
from benchmark.tracing_worker import Specimen, serve

PER_FAMILY = 2
# Words in names, from small to large; a name has the rank of its first word here.
SMALL = (
    *("test", "zepto", "femto", "atto", "pico", "nano", "xxxs", "xxs", "xxt", "xxtiny", "xs", "xtiny", "tiny"),
    *("micro", "mini", "ti", "t", "small", "s", "b", "m"),
)
SIDES = (64, 128, 224, 256)  # of the images, until one fits
MOST = 16_000_000  # parameters: what is larger was not made small

# The arguments of the models' classes: counts of blocks become 1 or 2, widths a quarter.
DEPTHS = r"depths?|layers|num_blocks|nums?_(blocks|layers|repeats)|block_depths|num_units"
WIDTHS = r"(.*_)?(embed_)?(dims?|width|widths|channels|chs|planes)|growth_rate|num_init_features|base_width"
WAYS = (DEPTHS, WIDTHS), (DEPTHS, ""), ("", "")  # what is made small, from thorough to mild


def names() -> Iterator[tuple[str, str]]:
    """(family, model) of every model."""
    timm = load_timm()
    for family in timm.list_modules():
        for name in sorted(timm.list_models(module=family), key=_rank)[:PER_FAMILY]:
            yield family, name


def _rank(name: str) -> tuple[int, int, int, str]:
    words = re.split(r"[_.\d]+", name)
    place = min((SMALL.index(word) for word in words if word in SMALL), default=len(SMALL))
    number = next((int(n) for n in re.findall(r"\d+", name)), 0)
    return place, number, len(name), name


@contextmanager
def made_small(family: str, depths: str, widths: str) -> Iterator[None]:
    """Within this block models of a family are built with smaller arguments than they ask for."""
    load_timm()
    module: Any = importlib.import_module(f"timm.models.{family}")
    build_as_asked = module.build_model_with_cfg

    def build_small(model_class: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(model_class).parameters.values()
        asked = {a.name: a.default for a in arguments if a.default is not a.empty} | kwargs
        changed = {k: _small(k, value, depths, widths) for k, value in asked.items()}
        return build_as_asked(model_class, *args, **kwargs | {k: v for k, v in changed.items() if v is not None})

    module.build_model_with_cfg = build_small
    try:
        yield
    finally:
        module.build_model_with_cfg = build_as_asked


def _small(name: str, value: Any, depths: str, widths: str) -> Any:
    """A smaller value for an argument of a model's class, or None."""
    several = isinstance(value, list | tuple)
    if not all(type(v) is int for v in (value if several else [value])) or name.startswith("in_"):
        return None
    if re.fullmatch(depths, name):
        return type(value)(1 for _ in value) if several else min(value, 2)
    if re.fullmatch(widths, name):
        return type(value)(map(_quarter, value)) if several else _quarter(value)
    return 64 if widths and name == "num_features" and value > 64 else None


def _quarter(width: int) -> int:
    return width // 4 if width >= 32 and width % 32 == 0 else width


def build(family: str, name: str) -> Specimen:
    """A small model with two images; raises the first error if nothing runs."""
    first: Exception | None = None
    for way in WAYS:
        for side in SIDES:
            for arguments in ({"img_size": side}, {}):
                try:
                    with made_small(family, *way):
                        return _built(name, side, arguments)
                except Exception as error:
                    first = error if first is None or isinstance(first, TypeError) else first
    assert first is not None
    raise first


def _built(name: str, side: int, arguments: dict[str, Any]) -> Specimen:
    timm = load_timm()
    with torch.device("meta"):
        size = sum(p.numel() for p in timm.create_model(name, num_classes=7, **arguments).parameters())
    if size > MOST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **arguments).eval()
    images = torch.randn(2, model.default_cfg["input_size"][0], side, side)
    with torch.no_grad():
        model(images)
    return Specimen(model, (images,), {})


if __name__ == "__main__":
    serve(names, build)
