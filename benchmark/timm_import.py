"""`timm` without torchvision, which it imports for its data sets and never needs for a model."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@functools.cache
def load_timm() -> Any:
    """The package; imported when it is needed, since it takes seconds and few commands need it."""
    with without_torchvision():
        return importlib.import_module("timm")


class _Named(type):
    """A class whose every attribute is the attribute's name: an enumeration's members."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Anything(types.ModuleType):
    """A module that has every attribute: a class that does nothing."""

    __path__: MutableSequence[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (nn.Module,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of torchvision, so that none that is installed is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Imports in this block get stand-ins for torchvision; nothing of them is left."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
