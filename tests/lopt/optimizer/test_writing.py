"""How updates reach the parameters: in lists, one by one, with factors, piece by piece."""

import pytest
import torch
from torch import nn

from lopt import LearnedOptimizer, WeightSpace
from lopt.optimizer.writing import Rates, Targets, write, write_where
from lopt.rules import Clock, State, UpdateRule, Updates


class Pieces(UpdateRule):
    """Hands out -gradient, then gradient for each tensor's second half, with factors and a buffer that it reuses."""

    default_lr = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.before: list[dict] = []

    @property
    def arguments(self):
        return {}

    def init_state(self, space, params):
        return State({k: {"step": torch.zeros(())} for k in params}, {})

    def forward(self, space, params, grads, state, clock):
        raise AssertionError("the optimizer owns the state, so it calls updates_")

    def updates_(self, space: WeightSpace, params, grads, state: State, clock: Clock):
        buffer = torch.empty(4)
        for number, (name, g) in enumerate(grads.items()):
            state.tensors[name]["step"].add_(1)
            torch.mul(g, -1, out=buffer)
            self.before.append({k: p.detach().clone() for k, p in params.items()})
            yield Updates([name], [buffer], [torch.tensor(float(number))])


@pytest.mark.parametrize("foreach", [None, False, True])
def test_updates_come_in_pieces_and_are_written_as_they_come(foreach):
    params = [nn.Parameter(torch.full((4,), float(i))) for i in range(3)]
    optimizer = LearnedOptimizer(params, 0.5, rule=(rule := Pieces()), weight_decay=0.1, foreach=foreach)
    for p in params:
        p.grad = torch.arange(4.0)
    optimizer.step()
    for i, p in enumerate(params):
        torch.testing.assert_close(p.detach(), i - 0.5 * (-i * torch.arange(4.0) + 0.1 * i))
        assert optimizer.state[p]["step"] == 1
    assert torch.equal(rule.before[2]["1"], params[1].detach())  # written when the next one came
    assert torch.equal(rule.before[1]["1"], torch.ones(4))


@pytest.mark.parametrize("with_factors", [False, True])
@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_ways_of_writing_are_one(dtype, lr, with_factors):
    g = torch.Generator().manual_seed(0)
    shapes = [(), (3,), (2, 5), (0,), (4, 1, 2)]
    start = [torch.randn(s, generator=g).to(dtype) for s in shapes]
    wide = torch.promote_types(dtype, torch.float32)
    directions = [torch.randn(s, generator=g, dtype=wide) for s in shapes]
    factors = [torch.randn((), generator=g) for _ in shapes] if with_factors else None
    names = [str(i) for i in range(len(shapes))]
    groups = {name: i % 2 for i, name in enumerate(names)} | {"4": 1}
    del groups["2"]  # takes part, and is not written
    results = []
    for way in (None, True, False, "where", "where not"):
        params = {name: nn.Parameter(p.clone()) for name, p in zip(names, start, strict=True)}
        foreach = way if isinstance(way, bool) else None
        targets = Targets(params, groups, [Rates(lr, 0.0, foreach), Rates(lr, 0.2, foreach)])
        updates = Updates(names, directions, factors)
        with torch.no_grad():
            write_where(torch.tensor(way == "where"), targets, updates) if isinstance(way, str) else write(
                targets, updates
            )
        results.append([p.detach() for p in params.values()])
    *ways, untouched = results
    for i, (p, d) in enumerate(zip(start, directions, strict=True)):
        update = d.double() if factors is None else d.double() * factors[i]
        change = 0 if i == 2 else 0.3 * (update + (0.2 if groups[str(i)] else 0) * p.double())
        for way in ways:
            torch.testing.assert_close(way[i].double(), p.double() - change, rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(untouched[i], p)
    assert all(torch.equal(d, e) for d, e in zip(directions, updates.directions, strict=True))


def test_a_small_change_is_rounded_once():
    """In bfloat16, 1 - 0.001 is 1: decay and update together move the weight where each alone would not."""
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    half_a_step = torch.tensor([0.0017])
    with torch.no_grad():
        write(Targets({"p": p}, {"p": 0}, [Rates(1.0, 0.0017, None)]), Updates(["p"], [half_a_step]))
    assert float(p) == 1 - 2**-8
