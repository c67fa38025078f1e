"""How updates reach the parameters: p <- p - lr (update + λ p), by the group of each parameter.

Two ways, which the tests compare: lists of plain tensors go through the foreach operators, in place and without a copy;
everything else (half precision, sharded tensors, a learning rate on the device, a graph) goes one tensor at a time,
with the change computed in the dtype of the direction, so that a half-precision weight is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lopt.rules.rule import Updates

_torch: Any = torch  # the foreach operators have no public names


class Rates(NamedTuple):
    """The options of one param group, read at each step, since schedulers change them."""

    lr: float | Tensor  # a tensor is ()
    weight_decay: float
    foreach: bool | None


class Targets(NamedTuple):
    """What may be written: parameters by name, and the rates of each."""

    params: Mapping[str, Tensor]
    groups: Mapping[str, int]  # name -> index into rates
    rates: Sequence[Rates]


def write(targets: Targets, updates: Updates) -> None:
    """Applies some updates; those of names without a group are dropped."""
    lists: dict[tuple[int, torch.dtype], list[int]] = {}
    for i, name in enumerate(updates.names):
        group = targets.groups.get(name)
        if group is None:
            continue
        p, rates = targets.params[name], targets.rates[group]
        if _in_lists(p, updates.directions[i], rates):
            lists.setdefault((group, p.dtype), []).append(i)
        else:
            p.sub_(_change(p, updates, i, rates))
    for (group, _), indices in lists.items():
        _write_list([targets.params[updates.names[i]] for i in indices], updates, indices, targets.rates[group])


def write_where(finite: Tensor | None, targets: Targets, updates: Updates) -> None:
    """The same without a decision in Python: nothing changes where `finite`, (), is false."""
    for i, name in enumerate(updates.names):
        if name in targets.groups:
            p = targets.params[name]
            change = _change(p, updates, i, targets.rates[targets.groups[name]])
            p.sub_(change if finite is None else torch.where(finite, change, 0.0))


def _in_lists(p: Tensor, direction: Tensor, rates: Rates) -> bool:
    if rates.foreach is False or isinstance(rates.lr, Tensor) or p.dtype != direction.dtype:
        return False
    return rates.foreach is True or type(p) is nn.Parameter or type(p) is Tensor


def _write_list(params: list[Tensor], updates: Updates, indices: Sequence[int], rates: Rates) -> None:
    directions = [updates.directions[i] for i in indices]
    if rates.weight_decay:
        _torch._foreach_mul_(params, 1 - rates.lr * rates.weight_decay)
    if updates.factors is None:
        _torch._foreach_add_(params, directions, alpha=-rates.lr)
    else:
        _torch._foreach_addcmul_(params, directions, [updates.factors[i] for i in indices], value=-rates.lr)


def _change(p: Tensor, updates: Updates, i: int, rates: Rates) -> Tensor:
    """lr (update + λ p) in the dtype of the direction."""
    change = updates.directions[i] if updates.factors is None else updates.directions[i] * updates.factors[i]
    if rates.weight_decay:
        change = change + rates.weight_decay * p.to(change.dtype)
    return change * rates.lr
