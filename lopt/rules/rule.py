"""The contract of an update rule: a pure function whose parameters are the meta-parameters θ.

    init_state(space, params)                       -> State
    forward(space, params, grads, state, clock)     -> (updates, State)

The caller applies `params <- params - lr * update - lr * weight_decay * params`. The same code runs under
`torch.func.vmap` with a stacked θ, eagerly on one model, and under `torch.compile`; so `forward` writes into none of
its inputs, reads no tensor's value into Python, and keeps nothing on itself.

`updates_` is the same step for a caller that owns the state and wants no second copy of it: it advances the state in
place, and hands out the updates piece by piece. A rule that can do this in less memory or time than `forward`
implements it; its tests compare the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor, nn

from lopt.rules.sharded import is_distributed, part_of, whole
from lopt.weight_space import WeightSpace

Tensors: TypeAlias = dict[str, Tensor]  # parameter name -> tensor


class Clock(NamedTuple):
    """What a rule is told about time and data. A rule must work with the step alone."""

    step: Tensor  # (): updates made before this one
    horizon: Tensor | None = None  # (): updates that will be made in all
    loss: Tensor | None = None  # (): the training loss of this step
    dataset_size: Tensor | None = None  # (): how many examples there are to train on
    batch_size: Tensor | None = None  # (): of how many of them a gradient is made


class State(NamedTuple):
    """All that a rule remembers."""

    tensors: dict[str, Tensors]  # parameter name -> key -> tensor; "step" counts the updates of this parameter
    scalars: Tensors  # key -> (): what belongs to the whole network


class Updates(NamedTuple):
    """The updates of some parameters, factor * direction each; the directions are valid until the next ones come."""

    names: Sequence[str]
    directions: Sequence[Tensor]
    factors: Sequence[Tensor] | None = None  # () each; None: 1


class UpdateRule(nn.Module, ABC):
    """Turns gradients into updates. Subclasses are final: compose rules, do not override a concrete method."""

    default_lr: ClassVar[float]  # the learning rate at which `LearnedOptimizer` runs this rule unless told otherwise
    takes_shards: ClassVar[bool] = False  # whether `forward` may be given sharded tensors (DTensor)
    zero_if_absent: ClassVar[tuple[str, ...]] = ()  # meta-parameters that files of earlier versions lack: zeros

    @property
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """The constructor's arguments as JSON values, so that a checkpoint can build the rule again."""

    @abstractmethod
    def init_state(self, space: WeightSpace, params: Mapping[str, Tensor]) -> State:
        """The state before the first update."""

    @abstractmethod
    def forward(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> tuple[Tensors, State]:
        """One step: updates with the shapes of `params`, and the next state."""

    def updates_(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> Iterator[Updates]:
        """`forward`, with `state` advanced in place; every parameter comes in one of the `Updates`.

        A parameter may be written as soon as its own update was handed out, not before. The state is complete when the
        iterator is exhausted.
        """
        sharded = not self.takes_shards and any(map(is_distributed, params.values()))
        step = self.on_whole_tensors if sharded else self
        updates, following = step(space, params, grads, state, clock)
        for name, tensors in following.tensors.items():
            for key, tensor in tensors.items():
                state.tensors[name][key].copy_(tensor)
        yield Updates(list(updates), list(updates.values()))

    def on_whole_tensors(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> tuple[Tensors, State]:
        """`forward` for sharded tensors: every process gathers them, computes all updates, and keeps its own part."""
        full = State({k: {key: whole(x) for key, x in tensors.items()} for k, tensors in state.tensors.items()}, {})
        weights, gradients = ({k: whole(x) for k, x in tensors.items()} for tensors in (params, grads))
        updates, following = self(space, weights, gradients, full, clock)
        parts = {
            name: {key: part_of(x, state.tensors[name][key]) for key, x in tensors.items()}
            for name, tensors in following.tensors.items()
        }
        return {name: part_of(u, params[name]) for name, u in updates.items()}, State(parts, state.scalars)
