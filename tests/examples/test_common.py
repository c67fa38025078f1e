"""What the examples share: permutations of each network, alignment, the symmetry of sines, models, and the loop."""

import itertools

import pytest
import torch

from examples.common import (
    Architecture,
    Recipe,
    align,
    canonical,
    make_model,
    permute_each,
    random_permutations,
    train,
)
from examples.common.models import NAMES
from examples.common.training import Batch, evaluate
from examples.make_inrs import render
from examples.make_inrs.sirens import initial_sirens
from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace

SHAPES = {"0.weight": (6, 2), "0.bias": (6,), "2.weight": (5, 6), "2.bias": (5,), "4.weight": (1, 5), "4.bias": (1,)}
SPACE = WeightSpace.linear_stack(SHAPES)


def sirens(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    drawn = initial_sirens(count, [2, 6, 5, 1], 4.0, torch.Generator().manual_seed(seed), scale=2.0)
    return dict(zip(SHAPES, drawn, strict=True))


def test_every_network_is_permuted_in_its_own_way_as_the_weight_space_permutes_one():
    tensors = sirens(4)
    permutations = random_permutations(SPACE, 4, torch.Generator().manual_seed(1))
    found = permute_each(SPACE, tensors, permutations)
    for k in range(4):
        one = SPACE.permute({n: x[k] for n, x in tensors.items()}, {g: p[k] for g, p in permutations.items()})
        for name, x in one.items():
            assert found[name][k].equal(x)
    assert len(permutations["h0"].unique(dim=0)) == 4
    torch.testing.assert_close(render(found, 5, 4.0), render(tensors, 5, 4.0))


def test_alignment_finds_the_best_order_of_one_group_and_never_goes_back_with_two():
    space = WeightSpace({"weight": "h:4, in=3", "bias": "h:4"})
    generator = torch.Generator().manual_seed(0)
    target, other = ({n: torch.randn(*s, generator=generator) for n, s in space.shapes.items()} for _ in range(2))
    found = align(space, {n: x[None] for n, x in other.items()}, target)
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    gains = [sum((other[n][order] * target[n]).sum() for n in target) for order in orders]
    torch.testing.assert_close(sum((found[n][0] * target[n]).sum() for n in target), max(gains))

    reference = {name: x[0] for name, x in sirens(1).items()}
    repeated = {name: x.expand(7, *x.shape) for name, x in reference.items()}
    shuffled = permute_each(SPACE, repeated, random_permutations(SPACE, 7, torch.Generator().manual_seed(0)))
    near = align(SPACE, shuffled, reference)

    def gain(tensors):
        return torch.stack([(tensors[n] * reference[n]).flatten(1).sum(1) for n in SPACE]).sum(0)

    assert (gain(near) > gain(shuffled)).all()
    assert (gain(near) > 0.999 * gain(repeated)).sum() >= 4  # most end at the reference itself, some beside it


@pytest.mark.parametrize("widths", [[2, 6, 1], [2, 6, 5, 3], [2, 4, 5, 6, 1]])
def test_canonical_signs_and_phases_keep_the_function_and_are_the_same_for_all_its_weights(widths):
    generator = torch.Generator().manual_seed(0)
    drawn = initial_sirens(9, widths, 4.0, generator, scale=2.0)
    names = [f"{2 * k}.{kind}" for k in range(len(widths) - 1) for kind in ("weight", "bias")]
    tensors = dict(zip(names, drawn, strict=True))
    found = canonical(tensors, 4.0)
    torch.testing.assert_close(render(found, 6, 4.0), render(tensors, 6, 4.0), rtol=1e-4, atol=1e-4)
    assert max(float(found[n].abs().max()) for n in names[1:-1:2]) <= torch.pi / 8 + 1e-6

    other = dict(tensors)  # random signs and whole turns: the same functions
    for weight, bias, following in zip(names[::2], names[1::2], names[2::2], strict=False):
        sign = torch.randint(0, 2, other[bias].shape, generator=generator) * 2.0 - 1
        other[weight], other[bias] = other[weight] * sign[..., None], other[bias] * sign + torch.pi / 2
        other[following] = other[following] * sign.unsqueeze(1)
    torch.testing.assert_close(render(other, 6, 4.0), render(tensors, 6, 4.0), rtol=1e-4, atol=1e-4)
    for name, x in canonical(other, 4.0).items():
        torch.testing.assert_close(x, found[name], rtol=1e-4, atol=1e-4)

    space = WeightSpace.linear_stack({name: x.shape[1:] for name, x in tensors.items()})
    permutations = random_permutations(space, 9, generator)
    for name, x in canonical(permute_each(space, tensors, permutations), 4.0).items():
        torch.testing.assert_close(x, permute_each(space, found, permutations)[name])


@pytest.mark.parametrize("name", NAMES)
def test_functionals_do_not_see_the_order_of_neurons_and_the_mlp_does(name):
    torch.manual_seed(0)
    tensors = sirens(8)
    model = make_model(name, SPACE, tensors, 3, Architecture(channels=8, layers=2, head=16, width=16)).eval()
    shuffled = permute_each(SPACE, tensors, random_permutations(SPACE, 8, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        one, other = model(tensors), model(shuffled)
    assert one.shape == (8, 3)
    assert torch.allclose(one, other, atol=1e-5) == (name != "mlp")
    # And they do see the weights: two networks are told apart.
    assert (one[0] - one[1]).abs().max() > 1e-3


def test_an_unknown_model_is_named():
    with pytest.raises(InvalidInput, match="unknown model 'hpn'; did you mean 'hnp'"):
        make_model("hpn", SPACE, sirens(2), 3, Architecture())


def test_the_loop_learns_keeps_the_best_epoch_and_repeats_itself():
    tensors = sirens(60)
    target = tensors["0.bias"].square().mean(1)
    examples = Batch(tensors, target)
    assert len(examples.rows(slice(5))) == 5

    def loss(model, batch):
        return (model(batch.tensors)[:, 0] - batch.target).square().mean()

    def score(model, batch):
        return -(model(batch.tensors)[:, 0] - batch.target).square()

    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = make_model("hnp", SPACE, tensors, 1, Architecture(channels=4, layers=2, head=8))
        generator = torch.Generator().manual_seed(0)
        epochs = list(train(model, examples, examples, loss, score, Recipe(12, 16, 1e-2), generator))
        assert evaluate(model, examples, score) == pytest.approx(max(epoch.score for epoch in epochs))
        runs.append(epochs)
    assert runs[0] == runs[1]
    assert runs[0][-1].score > 0.5 * runs[0][0].score  # the error is halved at least; scores are negative errors
