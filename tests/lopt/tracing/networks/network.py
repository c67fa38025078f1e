"""A row of the examples, and words for the axes of the usual layers: those of a space that is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from lopt import WeightSpace

Axes: TypeAlias = dict[str, str]


class Network(NamedTuple):
    """A module with random weights, an example of its inputs, and its symmetry.

    Attributes:
        told: what the tracer has to warn of, as a regular expression; empty: nothing.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    space: WeightSpace
    told: str = ""


Make: TypeAlias = Callable[[], Network]


def network(
    module: nn.Module, inputs: tuple[Any, ...], axes: Axes, buffers: Mapping[str, str] | None = None, told: str = ""
) -> Network:
    """A row; `axes` may be written in any order."""
    names = [name for name, _ in module.named_parameters()]
    assert sorted(names) == sorted(axes), set(names) ^ set(axes)
    return Network(module, inputs, WeightSpace({name: axes[name] for name in names}, buffers), told)


def dense(name: str, out: str, of: str) -> Axes:
    """`nn.Linear`: a weight (out, in) and a bias (out).

    >>> dense("fc", "h:5", "3")
    {'fc.weight': 'h:5, 3', 'fc.bias': 'h:5'}
    """
    return {f"{name}.weight": f"{out}, {of}", f"{name}.bias": out}


def conv(name: str, out: str, of: str, *taps: int) -> Axes:
    """`nn.Conv1d` and its relatives: a weight (out, in / groups, *taps) and a bias (out)."""
    return {f"{name}.weight": ", ".join([out, of, *map(str, taps)]), f"{name}.bias": out}


def conv_transpose(name: str, of: str, out: str, *taps: int) -> Axes:
    """`nn.ConvTranspose2d`: a weight (in, out, *taps) and a bias (out)."""
    return {f"{name}.weight": ", ".join([of, out, *map(str, taps)]), f"{name}.bias": out}


def norm(name: str, group: str) -> Axes:
    """The weight and the bias of a normalisation."""
    return {f"{name}.weight": group, f"{name}.bias": group}


def running(name: str, group: str) -> Axes:
    """The buffers of a BatchNorm; `num_batches_tracked` is one number."""
    return {f"{name}.running_mean": group, f"{name}.running_var": group}
