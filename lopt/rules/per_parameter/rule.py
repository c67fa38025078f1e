"""PerParameter: an MLP over each weight's own features; the field's standard, and blind to the network's structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lopt.rules.features import (
    WEIGHT_CHANNELS,
    MomentumUpdate,
    PointwiseFeatures,
    advance_momenta,
    init_momenta,
    unflatten,
)
from lopt.rules.per_parameter import cpu
from lopt.rules.per_parameter.step import Layers, in_order, updates_in_chunks
from lopt.rules.rule import Clock, State, Tensors, UpdateRule, Updates
from lopt.weight_space import WeightSpace


class PerParameter(UpdateRule):
    r"""An MLP (19-32-32-32-1) over each weight's features, the same for every weight of every network.

    $$ u = \alpha\, (m_{0.9} + \beta\, \mathrm{MLP}(w, g, m_{0.1}, \ldots, m_{0.9999}, \tanh(t/\tau - 1))) $$

    with weight, gradient and momenta divided by their RMS over the tensor. α = 0.1 and β = 0.001 at the start; both are
    meta-learned. Source: small_fc_lopt (arXiv 2203.11860) in the form that UNF compares with ("Deep Sets", section
    5.2); it has one output a weight where small_fc_lopt has a direction and a magnitude.

    State: "momenta", 24 bytes a parameter: float32, for weights of half precision, too.

    >>> sum(p.numel() for p in PerParameter().parameters())
    2787
    """

    default_lr: ClassVar[float] = 1.0

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self._arguments = {"width": width, "layers": layers}
        self.features = PointwiseFeatures(width, layers)
        self.head = nn.Linear(width, 1)
        self.update = MomentumUpdate()

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self._arguments

    def init_state(self, space: WeightSpace, params: Mapping[str, Tensor]) -> State:
        return init_momenta(params)

    def forward(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> tuple[Tensors, State]:
        state = advance_momenta(grads, state)
        f = self.head(self.features(params, grads, state, clock))
        return self.update(unflatten(f, grads), state), state

    @torch.no_grad()
    def updates_(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> Iterator[Updates]:
        if not in_order(params, grads, state):
            yield from super().updates_(space, params, grads, state, clock)
            return
        first, rest = self.features.first, self.features.rest
        alpha, both = self.update.alpha, self.update.alpha * self.update.beta
        layers = Layers(
            first.weight[:, :WEIGHT_CHANNELS],
            self.features.bias(clock),
            [(layer.weight, layer.bias) for layer in rest if isinstance(layer, nn.Linear)],
            self.head.weight[0] * both,
            self.head.bias[0] * both,
            alpha,
        )
        suits = cpu.suits(first.weight, params, grads, state)
        yield from (cpu.native_updates if suits else updates_in_chunks)(layers, params, grads, state)
