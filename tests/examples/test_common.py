"""What the examples share: permutations, alignment, the symmetry of sines, models, the loop, sets, and commands."""

import itertools
from pathlib import Path

import pytest
import torch

from examples.common import (
    Architecture,
    Recipe,
    align,
    canonical,
    make_model,
    permute_each,
    prepare,
    random_permutations,
    starter,
    train,
    use_threads,
)
from examples.common.methods import ALIGNED, AUGMENTED, TITLES
from examples.common.models import NAMES
from examples.common.probes import Probes
from examples.common.shards import Shard, digest, generator_of
from examples.common.training import EVALUATED, Batch, apply, evaluate
from examples.make_inrs import render
from examples.make_inrs.sirens import coordinates, initial_sirens
from lopt.errors import InvalidInput
from lopt.functionals import FourierFeatures
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


@pytest.mark.parametrize(
    "changed",
    [{}, {"frequencies": 4, "activation": "gelu"}, {"probes": 5, "frequency": 4.0}],
    ids=["plain", "Fourier features", "probes"],
)
@pytest.mark.parametrize("name", NAMES)
def test_functionals_do_not_see_the_order_of_neurons_and_the_mlp_does(name, changed):
    torch.manual_seed(0)
    tensors = sirens(8)
    size = Architecture(channels=8, layers=2, head=16, width=16, **changed)
    model = make_model(name, SPACE, tensors, 3, size).eval()
    for kind, key in ((FourierFeatures, "frequencies"), (Probes, "probes")):
        assert any(isinstance(part, kind) for part in model.modules()) == (key in changed and name != "mlp")
    shuffled = permute_each(SPACE, tensors, random_permutations(SPACE, 8, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        one, other = model(tensors), model(shuffled)
    assert one.shape == (8, 3)
    assert torch.allclose(one, other, atol=1e-5) == (name != "mlp")
    # And they do see the weights: two networks are told apart.
    assert (one[0] - one[1]).abs().max() > 1e-3


def test_probes_say_what_the_networks_do_and_are_learned():
    tensors, frequency = sirens(8), 4.0
    probes = Probes(SPACE, 3, points=16, frequency=frequency)
    values = probes.values(tensors)
    assert [value.shape for value in values] == [(8, 16, x.shape[1]) for x in list(tensors.values())[1::2]]
    with torch.no_grad():
        probes.points.copy_(coordinates(4))
    torch.testing.assert_close(probes.values(tensors)[-1].mT.unflatten(-1, (4, 4)), render(tensors, 4, frequency))
    features = {name: torch.zeros(*x.shape, 3) for name, x in tensors.items()}
    torch.stack([x.square().sum() for x in probes(tensors, features).values()]).sum().backward()
    assert probes.points.grad is not None and probes.points.grad.abs().min() > 0
    with pytest.raises(InvalidInput, match="probes: 4, but no frequency"):
        Architecture(probes=4)
    with pytest.raises(InvalidInput, match="probes=-1"):
        Architecture(probes=-1)


def test_unknown_names_are_told_their_neighbours():
    with pytest.raises(InvalidInput, match="unknown activation 'glu'"):
        Architecture(activation="glu")
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


def test_apply_is_the_whole_at_once_without_gradients_and_dropout():
    tensors = sirens(EVALUATED + 3)
    examples = Batch(tensors, torch.zeros(EVALUATED + 3))
    model = torch.nn.Sequential(torch.nn.Linear(6, 2), torch.nn.Dropout(0.5)).train()
    sizes = []

    def said(model, batch):
        sizes.append(len(batch))
        return model(batch.tensors["0.bias"])

    found = apply(model, examples, said)
    assert sizes == [EVALUATED, 3] and not found.requires_grad
    torch.testing.assert_close(found, model[0](tensors["0.bias"]).detach())


def test_trials_are_seeded_and_only_the_aligned_ones_see_other_networks():
    splits = {"train": Batch(sirens(5), torch.arange(5.0))}
    size = Architecture(channels=4, layers=1, head=8, width=8)
    start = starter(lambda trial: trial, SPACE, splits, size, Recipe(1))
    plain, near, again = start("mlp", 3), start(ALIGNED, 3), start(ALIGNED, 4)
    assert plain.splits["train"] is splits["train"] and near.splits["train"] is again.splits["train"]
    assert not near.splits["train"].tensors["0.bias"].equal(splits["train"].tensors["0.bias"])
    weights = [trial.make_model(1).state_dict()["2.0.weight"] for trial in (plain, start("mlp", 3), start("mlp", 4))]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert set(TITLES) == {*NAMES, AUGMENTED, ALIGNED}


def test_augmentation_permutes_the_networks_that_the_loss_sees():
    examples = Batch(sirens(6), torch.zeros(6))
    splits = {"train": examples, "validation": examples}
    size = Architecture(width=8)
    seen = {}
    for method in ("mlp", AUGMENTED):

        def loss(model, batch, method=method):
            if model.training:
                seen[method] = batch.tensors
            return model(batch.tensors).square().mean()

        trial = starter(lambda trial: trial, SPACE, splits, size, Recipe(1, 6))(method, 0)
        list(trial.train(trial.make_model(1), loss, lambda model, batch: -model(batch.tensors)[:, 0]))
    plain, shuffled = seen["mlp"]["0.bias"], seen[AUGMENTED]["0.bias"]
    assert not shuffled.equal(plain)
    torch.testing.assert_close(shuffled.sort(1).values, plain.sort(1).values)


def test_sets_that_are_on_disk_stay_readable_and_go_on_with_the_same_numbers():
    # What files made so far hold, and what the shards that are still missing will be drawn from.
    config = {"data": "digits", "train": 8, "validation": 4, "test": 4, "shard": 4, "seed": 3, "hidden": [16]}
    assert digest(config) == "3df97adad74e250d"
    seeds = [generator_of(Shard(split, 4, 8, Path()), config).initial_seed() for split in ("train", "test")]
    assert seeds == [191171737318897464, 2653433342817477849]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_a_command_begins_with_its_threads_and_counts(threads, monkeypatch):
    kept = []
    monkeypatch.setattr("examples.common.runs.keep_freed_memory", lambda: kept.append(True))
    settings = {"seeds": 1, "threads": threads + 1, "train": 5, "validation": None}
    assert prepare(settings, ["mlp"], NAMES) == {"train": 5}
    assert torch.get_num_threads() == threads + 1
    use_threads(threads)
    assert torch.get_num_threads() == threads
    assert len(kept) == 2


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
@pytest.mark.parametrize("key", ["seeds", "threads"])
def test_a_command_refuses_bad_numbers_and_names(threads, key, value):
    settings = {"seeds": 1, "threads": threads + 1}
    with pytest.raises(InvalidInput, match=f"{key}={value}"):
        prepare({**settings, key: value}, ["mlp"], NAMES)
    with pytest.raises(InvalidInput, match="unknown method 'mpl'; did you mean 'mlp'"):
        prepare(settings, ["mpl"], NAMES, "method")
    assert torch.get_num_threads() == threads
