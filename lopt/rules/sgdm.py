"""SGD with momentum under the contract of update rules: a baseline, and proof of the interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lopt.rules.foreach import count_, entries
from lopt.rules.moments import accumulator, logit, moving_average
from lopt.rules.rule import Clock, State, Tensors, UpdateRule, Updates
from lopt.rules.sharded import is_distributed
from lopt.weight_space import WeightSpace

_torch: Any = torch  # the foreach operators have no public names


class SGDM(UpdateRule):
    r"""SGD with heavy-ball momentum, as `torch.optim.SGD(momentum=...)`.

    $$ m_t = \mu m_{t-1} + g_t, \qquad u_t = s\, m_t $$

    Args:
        momentum: μ, between 0 and 1.

    State: "momentum", 4 bytes a parameter: float32, for weights of half precision, too.
    """

    default_lr: ClassVar[float] = 1e-2
    takes_shards: ClassVar[bool] = True

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        self._momentum = momentum
        self.momentum_logit = nn.Parameter(torch.tensor(logit(momentum)))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"momentum": self._momentum}

    def init_state(self, space: WeightSpace, params: Mapping[str, Tensor]) -> State:
        return State(
            {
                k: {"step": torch.zeros((), dtype=torch.float32, device=p.device), "momentum": accumulator(p)}
                for k, p in params.items()
            },
            {},
        )

    def forward(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> tuple[Tensors, State]:
        decay, scale = torch.sigmoid(self.momentum_logit), self.log_scale.exp()
        updates: Tensors = {}
        following: dict[str, Tensors] = {}
        for name, g in grads.items():
            old = state.tensors[name]
            momentum = moving_average(old["momentum"], g, decay, 1.0)
            updates[name] = scale * momentum
            following[name] = {"step": old["step"] + 1, "momentum": momentum}
        return updates, State(following, state.scalars)

    @torch.no_grad()
    def updates_(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> Iterator[Updates]:
        if any(map(is_distributed, params.values())):
            yield from super().updates_(space, params, grads, state, clock)
            return
        count_(state, grads)
        momenta = entries(state, grads, "momentum")
        _torch._foreach_mul_(momenta, torch.sigmoid(self.momentum_logit))
        _torch._foreach_add_(momenta, list(grads.values()))
        yield Updates(list(grads), momenta, [self.log_scale.exp()] * len(momenta))
