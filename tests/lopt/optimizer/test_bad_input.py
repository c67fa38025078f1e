"""What cannot be used: a clear error, and the model as it was."""

from typing import Any

import pytest
import torch
from torch import nn

from lopt import InvalidInput, LearnedOptimizer, WeightSpace
from lopt.rules import Adam, Functional
from tests.lopt.optimizer.common import Spy, backward, build, same, weights

STACK = {"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "out=2, h:4", "2.bias": "out=2"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lr": -0.1}, r"Invalid learning rate: -0\.1"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": float("inf")}, "Invalid learning rate: inf"),
        ({"lr": torch.tensor(-1.0)}, "Invalid learning rate"),
        ({"lr": torch.ones(2)}, "Invalid learning rate"),
        ({"lr": "fast"}, "Invalid learning rate: 'fast'"),
        ({"lr": "1e-3"}, "Invalid learning rate: '1e-3'.*YAML reads 1e-3 as a string"),
        ({"weight_decay": "0.1"}, "Invalid weight_decay value: '0.1'"),
        ({"total_steps": "100"}, "Invalid total_steps: '100'"),
        ({"weight_decay": -1.0}, r"Invalid weight_decay value: -1\.0"),
        ({"weight_decay": float("nan")}, "Invalid weight_decay value: nan"),
        ({"total_steps": 0}, "Invalid total_steps: 0"),
        ({"total_steps": -3}, "Invalid total_steps: -3"),
        ({"total_steps": float("nan")}, "Invalid total_steps: nan"),
        ({"dataset_size": 40}, "dataset_size=40, batch_size=None: give both"),
        ({"batch_size": 40}, "dataset_size=None, batch_size=40: give both"),
        ({"dataset_size": 40, "batch_size": -1}, "Invalid batch_size: -1. Give the number of examples in the batch"),
        ({"dataset_size": 0}, "Invalid dataset_size: 0. Give the number of examples"),
        ({"dataset_size": "all"}, "Invalid dataset_size: 'all'"),
        ({"dataset_size": float("inf")}, "Invalid dataset_size: inf"),
        ({"rule": "adam"}, r"no fitted 'adam' is packaged.*lopt\.rules\.Adam\("),
        ({"rule": "per-paramete"}, "unknown rule 'per-paramete'"),
        ({"rule": "missing.safetensors"}, "there is no file 'missing.safetensors'"),
        ({"rule": "hub:owner/repository"}, r"downloads nothing. Pass lopt\.load_rule\('hub:owner/repository'\)"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: 'ignore'"),
        ({"rule": Adam}, r"rule: .*give an object, such as lopt\.rules\.Adam\(\)"),
        ({"rule": 3}, "rule: 3"),
        ({"weight_space": WeightSpace({"w": "4, 3"})}, "weight_space has 1 parameters and the optimizer 4"),
        (
            {"weight_space": WeightSpace(STACK | {"2.bias": "3"})},
            r"weight_space: parameter '2.bias' has shape \(2,\), the space says \(3,\)",
        ),
        ({"rule": Functional({"w": "4, 3"}, 4, 1)}, "this Functional was made for another network.*PerParameter"),
        (
            {"rule": Functional(STACK, 4, 1), "weight_space": WeightSpace(STACK | {"0.bias": "4"})},
            "this Functional was made for another network",
        ),
    ],
)
def test_arguments_that_cannot_be_used(arguments, complaint, model):
    before = weights(model)
    with pytest.raises(InvalidInput, match=complaint):
        LearnedOptimizer(model.parameters(), **{"rule": Adam(), **arguments})
    assert same(weights(model), before)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.inner."])
def test_a_weight_space_of_what_a_wrapper_holds(model, prefix):
    named = [(prefix + name, p) for name, p in model.named_parameters()]
    with pytest.raises(InvalidInput, match=rf"'{prefix}' before each name: give the named_parameters\(\) of what it"):
        LearnedOptimizer(named, rule=Adam(), weight_space=WeightSpace(STACK))


def test_a_weight_space_of_other_names(model):
    with pytest.raises(InvalidInput, match=r"not in the space \['0.weight', '0.bias'"):
        LearnedOptimizer(model.named_parameters(), rule=Adam(), weight_space=WeightSpace({"w": "4, 3"}))


def test_parameters_that_cannot_be_used(model):
    with pytest.raises(ValueError, match="empty parameter list"):
        LearnedOptimizer([], rule=Adam())
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        LearnedOptimizer(model[0].weight, rule=Adam())
    with pytest.raises(ValueError, match="more than one parameter group"):
        LearnedOptimizer([{"params": model.parameters()}, {"params": [model[0].weight]}], rule=Adam())
    with pytest.raises(ValueError, match="non-leaf"):
        LearnedOptimizer([model[0].weight * 2], rule=Adam())
    with pytest.warns(UserWarning, match="duplicate parameters"):
        LearnedOptimizer([model[0].weight, model[0].weight], rule=Adam())


def test_parameters_on_several_devices():
    here, there = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(InvalidInput, match="several devices, cpu, meta.*fully_shard"):
        LearnedOptimizer([here, there], rule=Adam())
    optimizer = LearnedOptimizer([here], rule=Adam())
    with pytest.raises(InvalidInput, match="several devices"):
        optimizer.add_param_group({"params": [there]})
    assert len(optimizer.param_groups) == 1
    frozen = there.requires_grad_(False)  # it never has a gradient, so it may be anywhere
    LearnedOptimizer([here, frozen], rule=Adam())


def test_parameters_of_kinds_that_do_not_train():
    with pytest.raises(InvalidInput, match=r"number 1 is torch.complex64; complex .*torch\.view_as_real"):
        LearnedOptimizer([torch.ones(2), torch.ones(2, dtype=torch.complex64)], rule=Adam())
    with pytest.raises(InvalidInput, match="number 0 has no shape yet"):
        LearnedOptimizer(nn.LazyLinear(2).parameters(), rule=Adam())
    count = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)  # as quantised networks have
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    LearnedOptimizer([count, weight], 0.1, rule=Adam()).step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.9))


def test_sparse_gradients(model):
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = LearnedOptimizer([("table", embedding.weight), *model.named_parameters()], rule=Adam())
    model(embedding(torch.tensor([1, 3]))).sum().backward()
    before = weights(model)
    with pytest.raises(InvalidInput, match=r"gradient of parameter 'table' is sparse .*sparse=False.*SparseAdam"):
        optimizer.step()
    assert same(weights(model), before) and not optimizer.state


def test_a_loss_that_is_no_number(model):
    optimizer = LearnedOptimizer(model.parameters(), rule=(rule := Spy()))
    backward(model, 0)
    before = weights(model)
    with pytest.raises(InvalidInput, match=r"loss: a tensor of shape \(3,\)"):
        optimizer.step(loss=torch.ones(3))
    assert same(weights(model), before) and not optimizer.state
    returned: Any = {"loss": 1.0}
    assert optimizer.step(lambda: returned) is returned  # what a closure returns is its own affair
    assert rule.clocks[-1].loss is None


def test_a_duplicate_is_one_parameter():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = LearnedOptimizer([p, q, p], 0.25, rule=(rule := Spy()))
    p.grad = q.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2,), 0.75))
    assert set(rule.spaces[-1]) == {"0", "1"}


def test_a_capturable_step_cannot_raise(model):
    with pytest.raises(InvalidInput, match="captured step cannot raise"):
        LearnedOptimizer(model.parameters(), rule=Adam(), capturable=True, on_nonfinite="raise")


def test_the_constructor_touches_no_data():
    """Nor does it make any: its time does not depend on the size of the network."""
    model = nn.Sequential(*[nn.Linear(2048, 2048, device="meta") for _ in range(24)])
    assert sum(p.numel() for p in model.parameters()) > 100_000_000
    optimizer = LearnedOptimizer(model.named_parameters(), rule=build("neuron", model))
    assert len(optimizer.weight_space) == 48 and not optimizer.state
