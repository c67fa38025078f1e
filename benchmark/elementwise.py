r"""The optimizers of `torch.optim` that treat every weight alike, as pure functions for a whole population at once.

A population is one matrix: a row is all weights of a particle, and every hyper-parameter is a column, so that one call
serves particles with different hyper-parameters. Each function is compared with its class of `torch.optim`, seed by
seed, in the tests. What a function does not know (`amsgrad`, `dampening`) is left to the class itself, run by run.

Legend of shapes: P particles, N weights of a particle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Hyper: TypeAlias = Mapping[str, Tensor]  # (P, 1) each
Memory: TypeAlias = dict[str, Tensor]  # (P, N) or (P, 1) each
# (weights (P, N), gradients (P, N), memory, number of the step from 1, hyper-parameters) -> weights, memory
Update: TypeAlias = Callable[[Tensor, Tensor, Memory, int, Hyper], tuple[Tensor, Memory]]


def sgd(w: Tensor, g: Tensor, memory: Memory, t: int, h: Hyper) -> tuple[Tensor, Memory]:
    """`torch.optim.SGD`: m = μ m + g; w = w - lr m, or with Nesterov w - lr (g + μ m)."""
    g = g + h["weight_decay"] * w
    m = h["momentum"] * memory["momentum"] + g
    return w - h["lr"] * torch.where(h["nesterov"] > 0, g + h["momentum"] * m, m), {"momentum": m}


def adam(w: Tensor, g: Tensor, memory: Memory, t: int, h: Hyper) -> tuple[Tensor, Memory]:
    """`torch.optim.Adam`; its weight decay is added to the gradient."""
    g = g + h["weight_decay"] * w
    memory = _moments(g, memory, h)
    return w - h["lr"] / (1 - h["beta1"] ** t) * memory["m"] / _root(memory["v"], t, h), memory


def adamw(w: Tensor, g: Tensor, memory: Memory, t: int, h: Hyper) -> tuple[Tensor, Memory]:
    """`torch.optim.AdamW`: Adam with decoupled weight decay."""
    return adam(w * (1 - h["lr"] * h["weight_decay"]), g, memory, t, {**h, "weight_decay": h["weight_decay"] * 0})


def nadam(w: Tensor, g: Tensor, memory: Memory, t: int, h: Hyper) -> tuple[Tensor, Memory]:
    """`torch.optim.NAdam`: Adam with Nesterov momentum and a momentum schedule; NAdamW with decoupled weight decay."""
    decoupled = h["decoupled_weight_decay"]
    w = w * (1 - h["lr"] * h["weight_decay"] * decoupled)
    g = g + h["weight_decay"] * (1 - decoupled) * w
    now, following = (h["beta1"] * (1 - 0.5 * 0.96 ** (k * h["momentum_decay"])) for k in (t, t + 1))
    product = memory["product"] * now
    memory = {**_moments(g, memory, h), "product": product}
    step = (1 - now) / (1 - product) * g + following / (1 - product * following) * memory["m"]
    return w - h["lr"] * step / _root(memory["v"], t, h), memory


def _moments(g: Tensor, memory: Memory, h: Hyper) -> Memory:
    m = torch.lerp(memory["m"], g, 1 - h["beta1"])
    v = h["beta2"] * memory["v"] + (1 - h["beta2"]) * g.square()
    return {"m": m, "v": v}


def _root(v: Tensor, t: int, h: Hyper) -> Tensor:
    return v.sqrt() / (1 - h["beta2"] ** t).sqrt() + h["eps"]


class Elementwise(NamedTuple):
    """An update, what it remembers (first value by name; (P, 1) where `single` names it), and what it knows."""

    update: Update
    memory: Mapping[str, float]
    hyper: frozenset[str]  # as the constructor of the class calls them
    single: frozenset[str] = frozenset()


_ADAM = frozenset({"lr", "betas", "eps", "weight_decay"})
_M_V = {"m": 0.0, "v": 0.0}
UPDATES: dict[type, Elementwise] = {
    torch.optim.SGD: Elementwise(sgd, {"momentum": 0.0}, frozenset({"lr", "momentum", "weight_decay", "nesterov"})),
    torch.optim.Adam: Elementwise(adam, _M_V, _ADAM),
    torch.optim.AdamW: Elementwise(adamw, _M_V, _ADAM),
    torch.optim.NAdam: Elementwise(
        nadam,
        {**_M_V, "product": 1.0},
        _ADAM | {"momentum_decay", "decoupled_weight_decay"},
        frozenset({"product"}),
    ),
}


def elementwise(optimizer: Any, arguments: Mapping[str, Any], names: Sequence[str]) -> Elementwise | None:
    """The pure update of an optimizer class, if there is one that knows these arguments and grid names."""
    found = UPDATES.get(optimizer) if isinstance(optimizer, type) else None
    return found if found is not None and found.hyper.issuperset([*arguments, *names]) else None


def hyper_parameters(
    optimizer: type,
    known: Elementwise,
    arguments: Mapping[str, Any],
    settings: Sequence[Mapping[str, Any]],
    like: Tensor,
) -> dict[str, Tensor]:
    """Columns (P, 1), one row for each setting: the defaults of the class, the arguments, the setting."""
    parameters = inspect.signature(optimizer).parameters
    defaults = {name: parameters[name].default for name in known.hyper}
    rows = []
    for setting in settings:
        row = {**defaults, **arguments, **setting}
        if "betas" in row:
            row["beta1"], row["beta2"] = row.pop("betas")
        rows.append(row)
    # In float64 first: 1 - beta2 keeps its digits.
    columns = {name: torch.tensor([[float(row[name])] for row in rows], dtype=torch.float64) for name in rows[0]}
    return {name: column.to(like) for name, column in columns.items()}


def first_memory(known: Elementwise, weights: Tensor) -> Memory:
    """What is remembered before the first step."""
    return {
        name: torch.full_like(weights[:, :1] if name in known.single else weights, value)
        for name, value in known.memory.items()
    }
