"""Adam under the contract of update rules: the baseline that every race is against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt.errors import InvalidInput
from lopt.rules.foreach import count_, entries, moving_average_, moving_square_
from lopt.rules.moments import accumulator, debias, logit, moving_average
from lopt.rules.rule import Clock, State, Tensors, UpdateRule, Updates
from lopt.rules.sharded import is_distributed
from lopt.weight_space import WeightSpace

_torch: Any = torch  # the foreach operators have no public names


class Adam(UpdateRule):
    r"""Adam (arXiv 1412.6980, Algorithm 1), as `torch.optim.Adam`.

    $$ m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t,\quad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2,\quad
       u_t = s\, \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} $$

    Args:
        beta1, beta2: decays between 0 and 1.
        eps: ε, above 0, in units of a gradient.

    State: "momentum" and "second_moment", 8 bytes a parameter: float32, for weights of half precision, too.
    """

    default_lr: ClassVar[float] = 1e-3
    takes_shards: ClassVar[bool] = True

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__()
        self._arguments = {"beta1": beta1, "beta2": beta2, "eps": eps}
        if not 0 < eps < math.inf:
            raise InvalidInput(f"eps: {eps}; it must be above 0 and finite")
        self.beta1_logit = nn.Parameter(torch.tensor(logit(beta1)))
        self.beta2_logit = nn.Parameter(torch.tensor(logit(beta2)))
        self.log_eps = nn.Parameter(torch.tensor(math.log(eps)))
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self._arguments

    def init_state(self, space: WeightSpace, params: Mapping[str, Tensor]) -> State:
        return State(
            {
                k: {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "momentum": accumulator(p),
                    "second_moment": accumulator(p),
                }
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
        (b1, gain1, log_b1), (b2, gain2, log_b2) = map(_decay, (self.beta1_logit, self.beta2_logit))
        eps, scale = self.log_eps.exp(), self.log_scale.exp()
        updates: Tensors = {}
        following: dict[str, Tensors] = {}
        for name, g in grads.items():
            old = state.tensors[name]
            g = g.to(old["momentum"].dtype)
            step = old["step"] + 1
            m = moving_average(old["momentum"], g, b1, gain1)
            v = moving_average(old["second_moment"], g.square(), b2, gain2)
            root = (v / debias(step, log_b2)).sqrt()
            updates[name] = scale / debias(step, log_b1) * m / (root + eps)
            following[name] = {"step": step, "momentum": m, "second_moment": v}
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
        (_, gain1, log_b1), (b2, gain2, log_b2) = map(_decay, (self.beta1_logit, self.beta2_logit))
        steps = torch.stack(count_(state, grads)).to(log_b1.dtype)
        m, v = (entries(state, grads, key) for key in ("momentum", "second_moment"))
        g = [x if x.dtype == old.dtype else x.to(old.dtype) for x, old in zip(grads.values(), m, strict=True)]
        moving_average_(m, g, gain1)
        moving_square_(v, g, b2, gain2)
        root_debias = debias(steps, log_b2).sqrt()  # of all tensors at once, [T]
        directions = _torch._foreach_sqrt(v)
        _torch._foreach_add_(directions, (self.log_eps.exp() * root_debias).unbind(0))
        _torch._foreach_reciprocal_(directions)
        _torch._foreach_mul_(directions, m)
        factors = self.log_scale.exp() * root_debias / debias(steps, log_b1)
        yield Updates(list(grads), directions, factors.unbind(0))


def _decay(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """decay, 1 - decay and log decay from a logit, each with all its digits."""
    return torch.sigmoid(x), torch.sigmoid(-x), F.logsigmoid(x)
