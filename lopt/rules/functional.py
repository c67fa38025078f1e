"""Functional: the published equivariant optimizer, UNF's rule: a few pointwise layers, then an NF-layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lopt.errors import InvalidInput
from lopt.functionals import EquivariantLinear
from lopt.rules.features import MomentumUpdate, PointwiseFeatures, advance_momenta, init_momenta, unflatten
from lopt.rules.rule import Clock, State, Tensors, UpdateRule
from lopt.weight_space import WeightSpace


class Functional(UpdateRule):
    r"""A neural functional over the weight space: every weight's update sees the whole network (UNF, section 5.2).

    $$ u = \alpha\, (m_{0.9} + \beta\, f(w, g, m_{0.1}, \ldots, m_{0.9999}, \tanh(t/\tau - 1))) $$

    f is three pointwise layers of 32 and one EquivariantLinear to one channel; the weight-shaped inputs are divided by
    their RMS over the tensor. α = 0.1 and β = 0.001 at the start; both are meta-learned. Named fixed axes (inputs,
    classes) count as permuted (NP), so that the coefficients do not grow with them.

    The coefficients of the NF-layer belong to pairs of tensors, so a fitted rule serves the networks of its `space`.

    Args:
        space: the weight space, or its dictionary of texts, as a checkpoint stores it.

    State: "momenta", 24 bytes a parameter: float32, for weights of half precision, too.

    >>> rule = Functional({"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "out=2, h:4", "2.bias": "out=2"})
    >>> len(rule.nf_layer.terms)
    32
    """

    default_lr: ClassVar[float] = 1.0

    def __init__(self, space: WeightSpace | Mapping[str, str], width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.space = space if isinstance(space, WeightSpace) else WeightSpace(space)
        self._arguments = {"width": width, "layers": layers}
        self.features = PointwiseFeatures(width, layers)
        self.nf_layer = EquivariantLinear(self.space.relaxed().independent(), width, 1)
        self.update = MomentumUpdate()

    @property
    def arguments(self) -> Mapping[str, Any]:
        axes = {name: ", ".join(map(str, axes)) for name, axes in self.space.items()}
        return {"space": axes, **self._arguments}

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
        if space != self.space:
            raise InvalidInput(f"space: this Functional rule was made for {self.space!r}, and was given {space!r}")
        state = advance_momenta(grads, state)
        features = unflatten(self.features(params, grads, state, clock), grads)
        return self.update(self.nf_layer(features), state), state
