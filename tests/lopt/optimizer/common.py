"""What the tests of LearnedOptimizer share: a small network, its training, and every rule of the registry."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt import WeightSpace
from lopt.rules import RULES, Adam, Clock, Functional, Neuron, PerParameter, UpdateRule

NEURONS = {"neuron": {}, "neuron_orthogonal": {"orthogonalise": True}, "neuron_deflated": {"deflation": 8}}
LR = {"sgdm": 0.01, "adam": 0.01, "per_parameter": 0.5, "functional": 0.5, **dict.fromkeys(NEURONS, 0.01)}
ANY_NETWORK = [name for name in RULES if name != "functional"]  # the rules that are not made for one network


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def build(name: str, model: nn.Module) -> UpdateRule:
    """A rule whose functional has a part in the update."""
    torch.manual_seed(1)
    if name == "functional":
        return Functional(WeightSpace.linear_stack(dict(model.named_parameters())), width=8, layers=2)
    if name == "per_parameter":
        return PerParameter(width=8, layers=2)
    if name not in NEURONS:
        return RULES[name]()
    rule = Neuron(width=8, rounds=1, **NEURONS[name])
    with torch.no_grad():  # its heads start at zero
        for p in rule.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return rule


def backward(model: nn.Module, step: int) -> Tensor:
    """Gradients of the loss of one step's batch, which the step's number alone decides."""
    g = torch.Generator().manual_seed(1000 + step)
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(16, 3, generator=g, dtype=dtype), torch.randn(16, 2, generator=g, dtype=dtype)
    model.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        backward(model, step)
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All state tensors, in the order of the parameters and of their keys."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [x.clone() for p in params for _, x in sorted(optimizer.state.get(p, {}).items())]


class Spy(UpdateRule):
    """Sign descent that keeps what it is told."""

    default_lr = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.clocks: list[Clock] = []
        self.spaces: list[WeightSpace] = []

    @property
    def arguments(self):
        return {}

    def init_state(self, space, params):
        return Adam().init_state(space, params)

    def forward(self, space, params, grads, state, clock):
        self.clocks.append(clock)
        self.spaces.append(space)
        _, state = Adam()(space, params, grads, state, clock)
        return {k: g.sign() for k, g in grads.items()}, state
