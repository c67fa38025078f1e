"""What happens between the two passes, and all that is learned: counters and sums in, a plan for the second out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopt.rules.neuron.combine import Plan, make_plan
from lopt.rules.neuron.layout import Layout
from lopt.rules.neuron.network import TokenNetwork
from lopt.rules.neuron.tokens import (
    data_of,
    follow_loss,
    global_features,
    log_rest,
    loss_features,
    moments_of,
    tensor_features,
)
from lopt.rules.rule import Clock, Tensors

_torch: Any = torch  # the foreach operators have no public names


class Mind(NamedTuple):
    """What a rule thinks with."""

    network: TokenNetwork
    decays: tuple[float, ...]  # of the two momenta and the second moment
    eps: float


def counters(layout: Layout, state: Mapping[str, Tensors], loss: Tensor | None) -> tuple[Tensor, Tensor]:
    """The number of this update for each tensor [T], and what it remembers of the loss [T, 4]."""
    tensors = [state[name] for name in layout.names]
    steps = torch.stack([entries["step"] for entries in tensors]).to(layout.dtype) + 1
    return steps, follow_loss(layout, torch.stack([entries["loss"] for entries in tensors]), loss)


def think(mind: Mind, layout: Layout, sums: Tensor, steps: Tensor, losses: Tensor, clock: Clock) -> Plan:
    """Sums over rows and columns [MOMENTS, E], and the counters of this step -> what the second pass needs."""
    debiases = torch.log(-torch.expm1(torch.stack([steps * math.log(decay) for decay in mind.decays])))
    moments = moments_of(layout, sums, debiases)
    tensors = tensor_features(layout, moments, loss_features(losses, clock.loss))
    entries = moments.features[:, : layout.n_entries].t()
    heads = mind.network(layout, entries, tensors, global_features(layout, clock), data_of(layout, clock))
    return make_plan(layout, moments, heads, debiases, log_rest(layout, clock), mind.eps)


def think_in_place(mind: Mind, layout: Layout, sums: Tensor, state: Mapping[str, Tensors], clock: Clock) -> Plan:
    """The same for a caller that owns the state, whose counters are advanced."""
    steps, losses = counters(layout, state, clock.loss)
    plan = think(mind, layout, sums, steps, losses, clock)
    _torch._foreach_copy_([state[k]["step"] for k in layout.names], steps.unbind(0))
    _torch._foreach_copy_([state[k]["loss"] for k in layout.names], losses.unbind(0))
    return plan
