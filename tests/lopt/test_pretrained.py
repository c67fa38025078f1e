"""The rules that ship: what their cards say, and that they train networks that they have never seen."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lopt

RULES = lopt.packaged_rules()


def test_the_default_ships():
    optimizer = lopt.LearnedOptimizer(nn.Linear(3, 2).parameters())
    assert isinstance(optimizer.rule, lopt.rules.Neuron)
    theta = lopt.load_rule("neuron-1").state_dict()
    assert all(torch.equal(x, theta[k]) for k, x in optimizer.rule.state_dict().items())
    assert any(bool(x.any()) for k, x in theta.items() if "head" in k)  # it was fitted
    assert optimizer.param_groups[0]["lr"] == optimizer.rule.default_lr


@pytest.mark.parametrize("name", RULES)
def test_what_ships_is_small_and_says_where_it_comes_from(name):
    path = Path(str(resources.files("lopt") / "pretrained" / f"{name}.safetensors"))
    assert path.stat().st_size < 1 << 20
    card = lopt.read_card(name)
    assert {"meta_trained_on", "command", "meta_steps", "lopt", "torch"} <= set(card)
    assert card["command"].startswith("python -m meta_train")
    assert all(bool(x.isfinite().all()) for x in lopt.load_rule(name).state_dict().values())


def test_a_loss_that_is_not_told_changes_no_first_step():
    """Of the first loss there is nothing to learn; where every training run was told its loss, a presence that was
    learned beside it would be a step of another size for those who tell none."""
    (x, y), steps = circles(), []
    for told in (True, False):
        torch.manual_seed(0)
        model = NETWORKS["mlp"]()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = lopt.LearnedOptimizer(model.named_parameters())
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(loss=loss if told else None)
        steps.append([p.detach() - old for p, old in zip(model.parameters(), before, strict=True)])
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def circles(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 10, generator=g)
    return x + 2, (x[:, :2].square().sum(1) > 1.4).long()


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(10, 24), nn.ELU(), nn.Linear(24, 24), nn.ELU(), nn.Linear(24, 2)),
    "norms": lambda: nn.Sequential(nn.Linear(10, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 2)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 12, 3), nn.GELU(), nn.Flatten(), nn.Linear(96, 2)
    ),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (5, 2)),
        nn.Linear(2, 12),
        nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(60, 2),
    ),
}


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_it_trains_networks_that_it_has_not_seen(network, told):
    """At its defaults, at least as far as Adam at its own; inputs with a mean, where centring counts."""
    steps, (x, y) = 150, circles()
    ends = {}
    for name in ("Adam", "neuron-1"):
        torch.manual_seed(0)
        model = NETWORKS[network]()
        optimizer: Any = torch.optim.Adam(model.parameters())
        if name == "neuron-1":
            space = lopt.trace(model, x[:4]) if told else None
            horizon = steps if told else None
            optimizer = lopt.LearnedOptimizer(model.named_parameters(), weight_space=space, total_steps=horizon)
        for _ in range(steps):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(**{"loss": loss} if told and name == "neuron-1" else {})
        ends[name] = float(F.cross_entropy(model(x), y).detach())
    assert ends["neuron-1"] < ends["Adam"], ends


@torch.no_grad()
def noisy(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear function of ten inputs, under as much noise: (rows, 10), (rows, 1)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 10, generator=g)
    return x, x[:, :4].sum(1, keepdim=True) / 2 + torch.randn(rows, 1, generator=g)


def test_told_how_often_an_example_comes_it_does_not_learn_by_heart():
    """100 noisy examples, each 128 times: the loss on others at the end. With enough of them nothing changes."""
    steps, batch, (x, y), (others, wanted) = 400, 32, noisy(100, 0), noisy(2000, 1)

    def ends(**sizes: Any) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = lopt.LearnedOptimizer(model.named_parameters(), total_steps=steps, **sizes)
        for _ in range(steps):
            drawn = torch.randint(len(x), (batch,))
            optimizer.zero_grad()
            F.mse_loss(model(x[drawn]), y[drawn]).backward()
            optimizer.step()
        return float(F.mse_loss(model(others), wanted).detach())

    untold = ends()
    told = ends(dataset_size=100, batch_size=batch)
    assert told < 0.8 * untold and told < 1.6, (told, untold)  # the noise alone is 1, a constant 2
    assert ends(dataset_size=steps * batch, batch_size=batch) == untold
