"""A user's own module and table."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lopt import InvalidInput, WeightSpace
from tasks import OwnData

INPUTS = torch.arange(100.0)[:, None]


def test_splits_are_disjoint_and_whole():
    task = OwnData(nn.Linear(1, 1), INPUTS, INPUTS, F.mse_loss).sample(torch.Generator())
    parts = [task.evaluation_batch(split)[0].flatten().tolist() for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(sum(parts, [])) == INPUTS.flatten().tolist()
    assert parts[0] != sorted(parts[0])
    inputs, targets = task.batch("train", torch.Generator().manual_seed(0))
    assert torch.equal(inputs, targets) and set(inputs.flatten().tolist()) <= set(parts[0])


def test_loss_is_the_modules():
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    task = OwnData(module, INPUTS, INPUTS, F.l1_loss).sample(torch.Generator())
    batch = task.evaluation_batch("test")
    came = task.loss(dict(module.named_parameters()), batch)
    torch.testing.assert_close(came, (module(batch[0]) - batch[1]).abs().mean())


def test_the_space_is_from_shapes_unless_given():
    module, targets = nn.Linear(1, 3), INPUTS[:, 0].long() % 3
    assert OwnData(module, INPUTS, targets).task.weight_space["weight"][0].size == 3
    given = WeightSpace({"weight": "out=3, in=1", "bias": "out=3"})
    assert OwnData(module, INPUTS, targets, weight_space=given).task.weight_space == given
    with pytest.raises(InvalidInput, match="shape"):
        OwnData(module, INPUTS, targets, weight_space=WeightSpace({"weight": "2, 1", "bias": "3"}))


@pytest.mark.parametrize(("rows", "targets"), [(4, 4), (10, 9)])
def test_bad_tables_are_named(rows, targets):
    with pytest.raises(InvalidInput, match=f"{rows} and {targets} rows"):
        OwnData(nn.Linear(1, 1), torch.zeros(rows, 1), torch.zeros(targets, 1))


def test_the_module_keeps_its_weights_and_buffers():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(8, 4))  # as training leaves it
    module = nn.Sequential(nn.Linear(1, 4), norm, nn.Linear(4, 1)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    task = OwnData(module, INPUTS, INPUTS, F.mse_loss).sample(torch.Generator())
    drawn = task.init(torch.Generator().manual_seed(0))
    assert not torch.equal(drawn["0.weight"], before["0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(p.grad is not None for p in module.parameters())


class Counts(nn.Linear):
    """Writes to a buffer, in either mode."""

    def __init__(self):
        super().__init__(1, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input):
        self.calls += 1
        return super().forward(input)


def net(*middle):
    return nn.Sequential(nn.Linear(1, 4), *middle, nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (net(nn.BatchNorm1d(4)), r"changes its buffers 1.running_mean.*call module.eval\(\) first, or use GroupNorm"),
        (net(nn.Dropout(0.5)), r"side by side \(RuntimeError: .*random.*call module.eval\(\) first"),
        (Counts(), "changes its buffers calls"),
    ],
)
def test_a_module_whose_copies_cannot_be_trained_side_by_side(module, message):
    with pytest.raises(InvalidInput, match=message):
        OwnData(module, INPUTS, INPUTS, F.mse_loss)


@pytest.mark.parametrize(
    "module", [net(nn.BatchNorm1d(4)).eval(), net(nn.Dropout(0.5)).eval(), net(nn.GroupNorm(2, 4))]
)
def test_the_remedies_work(module):
    OwnData(module, INPUTS, INPUTS, F.mse_loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, targets: (outputs - targets) ** 2, r"shape \(64, 1\); give one that returns the mean"),
        (lambda outputs, targets: 3.0, "returns a float; give one that returns the mean"),
        (F.nll_loss, r"cannot take the outputs .* shape \(64, 1\) \(RuntimeError"),
        (lambda outputs, targets: (outputs * (outputs.sum().item() > 0)).mean(), "side by side"),
    ],
)
def test_a_loss_that_is_not_one_number_from_outputs_and_targets(loss, message):
    with pytest.raises(InvalidInput, match=message):
        OwnData(net(), INPUTS, INPUTS, loss)
