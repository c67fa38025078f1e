"""Nests of tensors: what modules take and return. Tuples, lists, dicts, dataclasses and objects that hold tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of the nest with every tensor changed. Whatever is not a tuple, list, dict or dataclass stays as it is.

    >>> map_tensors({"x": [torch.ones(1), 2]}, lambda t: t + 1)
    {'x': [tensor([2.]), 2]}
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple):
        parts = [map_tensors(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if isinstance(tree, list):
        return type(tree)(map_tensors(part, change) for part in tree)
    if isinstance(tree, dict):
        copied = copy.copy(tree)
        for key, value in tree.items():
            copied[key] = map_tensors(value, change)
        return copied
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        copied = copy.copy(tree)
        for field in dataclasses.fields(tree):
            object.__setattr__(copied, field.name, map_tensors(getattr(tree, field.name), change))
        return copied
    return tree


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor of a nest, in order; also those that an object which is none of ours holds as attributes.

    >>> [t.item() for t in tensors_in({"y": torch.tensor(1), "more": (torch.tensor(2), [None])})]
    [1, 2]
    """
    return list(_tensors(tree, set()))


def _tensors(tree: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    if id(tree) in seen:
        return
    seen.add(id(tree))
    if isinstance(tree, Mapping):
        parts = list(tree.values())
    elif isinstance(tree, list | tuple | set | frozenset):
        parts = list(tree)
    elif isinstance(tree, type | nn.Module | torch.Generator) or callable(tree):
        parts = []
    else:
        parts = list(getattr(tree, "__dict__", {}).values())
    for part in parts:
        yield from _tensors(part, seen)
