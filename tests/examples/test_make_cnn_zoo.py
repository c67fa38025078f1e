"""The zoo of CNNs: against one network at a time with autograd and AdamW; a zoo that is stopped, cut and changed."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from examples.common import sets
from examples.common.shards import write_shard
from examples.make_cnn_zoo import SPACE, HyperParameters, Ranges, draw, load_zoo, logits, train_networks
from examples.make_cnn_zoo.__main__ import main
from examples.make_cnn_zoo.training import accuracies, initial, shapes
from lopt.errors import InvalidInput
from lopt.tracing import trace
from tasks import load_images
from tests.examples.common import DAMAGES, assert_same, configured, damage

SMALL = {
    "data": "digits",
    "train": 8,
    "validation": 2,
    "test": 4,
    "shard": 4,
    "steps": [2, 6],
    "batch": 4,
    "tested": 50,
}
RANGES = Ranges((0.3, 3.0), (3e-4, 3e-2), (1e-4, 1.0), 0.5, (0.25, 1.0), (30, 300))


def make(folder: Path, **changed) -> int:
    """What `python -m examples.make_cnn_zoo` does once Hydra has read the configuration."""
    return main(configured("make_cnn_zoo", {**SMALL, "folder": str(folder), **changed}))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "digits"
    assert make(folder) == 0
    assert (folder / "zoo.png").stat().st_size > 1000
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "zoo"))


def module_of(tensors, k: int, tanh: bool, dropout: nn.Module | None = None) -> nn.Sequential:
    bend = nn.Tanh if tanh else nn.ReLU
    layers: list[nn.Module] = []
    for inputs in (1, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, stride=2, padding=1), bend()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten() if dropout is None else nn.Sequential(nn.Flatten(), dropout)]
    module = nn.Sequential(*layers, *pool, nn.Linear(16, 10))
    module.load_state_dict({name: x[k] for name, x in tensors.items()})
    return module


class Masked(nn.Module):
    """Dropout with a mask that is given."""

    kept: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kept


# --- the training ----------------------------------------------------------------------------------------------------


def test_many_networks_are_trained_as_one_at_a_time_with_autograd_and_adamw():
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(40, 1, 8, 8, generator=generator), torch.randint(10, (40,), generator=generator)
    chosen = HyperParameters(
        tanh=torch.tensor([False, True, False]),
        uniform=torch.tensor([True, False, False]),
        scale=torch.tensor([1.0, 0.5, 2.0]),
        lr=torch.tensor([1e-2, 3e-3, 1e-3]),
        weight_decay=torch.tensor([0.1, 1.0, 0.01]),
        dropout=torch.tensor([0.4, 0.0, 0.2]),
        fraction=torch.tensor([1.0, 0.5, 0.25]),
        steps=torch.tensor([3, 9, 6]),
    )
    found = train_networks(images, labels, chosen, 10, 5, torch.Generator().manual_seed(2))

    generator = torch.Generator().manual_seed(2)
    order = [1, 2, 0]  # the longest first
    start = initial(chosen.rows(torch.tensor(order)), 10, generator)
    masks = [Masked() for _ in order]
    modules = [module_of(start, k, bool(chosen.tanh[p]), masks[k]) for k, p in enumerate(order)]
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=float(chosen.lr[p]), weight_decay=float(chosen.weight_decay[p]))
        for m, p in zip(modules, order, strict=True)
    ]
    for step in range(9):
        seen, dropped = torch.rand(3, 5, generator=generator), torch.rand(3, 5, 16, generator=generator)
        for k, p in enumerate(order):
            if step < chosen.steps[p]:
                rows = (seen[k] * 40 * chosen.fraction[p]).long()
                masks[k].kept = (dropped[k] >= chosen.dropout[p]) / (1 - chosen.dropout[p])
                optimizers[k].zero_grad()
                F.cross_entropy(modules[k](images[rows]), labels[rows]).backward()
                optimizers[k].step()
    for k, p in enumerate(order):
        for name, parameter in modules[k].named_parameters():
            torch.testing.assert_close(found[name][p], parameter.detach(), rtol=1e-3, atol=1e-5)
            assert (found[name][p] - start[name][k]).abs().max() > 1e-3


def test_accuracies_are_those_of_the_modules():
    generator = torch.Generator().manual_seed(0)
    chosen = draw(3, RANGES, generator)
    tensors = initial(chosen, 10, generator)
    images, labels = torch.randn(130, 1, 8, 8, generator=generator), torch.randint(10, (130,), generator=generator)
    found = accuracies(tensors, chosen.tanh, images, labels)
    for k in range(3):
        said = module_of(tensors, k, bool(chosen.tanh[k]))(images)
        torch.testing.assert_close(found[k], (said.argmax(1) == labels).float().mean())


def test_the_space_of_the_zoo_is_the_one_that_tracing_finds():
    module = module_of(initial(draw(1, RANGES, torch.Generator()), 10, torch.Generator()), 0, False)
    assert dict(SPACE.shapes) == shapes(10)
    traced = trace(module, torch.randn(2, 1, 8, 8))
    assert {name: x.shape for name, x in module.named_parameters()} == dict(SPACE.shapes)
    assert sorted(group.size for group in traced.groups.values()) == [16, 16, 16]
    # And no permutation of it changes what the networks say.
    generator = torch.Generator().manual_seed(0)
    chosen = draw(2, RANGES, generator)
    tensors, images = initial(chosen, 10, generator), torch.randn(4, 2, 8, 8, generator=generator)
    permuted = [SPACE.permute({n: x[k] for n, x in tensors.items()}, _random(generator)) for k in range(2)]
    both = [torch.stack([one[name] for one in permuted]) for name in tensors]
    torch.testing.assert_close(
        logits(both, images, chosen.tanh), logits(list(tensors.values()), images, chosen.tanh), rtol=1e-4, atol=1e-4
    )


def _random(generator):
    return {name: torch.randperm(group.size, generator=generator) for name, group in SPACE.groups.items()}


def test_hyper_parameters_stay_in_their_ranges_and_differ():
    drawn = draw(2000, RANGES, torch.Generator().manual_seed(0))
    for name in ("scale", "lr", "weight_decay", "steps"):
        column, (low, high) = drawn.columns()[name], getattr(RANGES, name)
        assert low * 0.999 <= column.min() and column.max() <= high * 1.001
        assert abs(column.float().log().mean() - torch.tensor([low, high]).log().mean()) < 0.1
    assert 0.4 < (drawn.dropout == 0).float().mean() < 0.6 and drawn.dropout.max() < 0.5
    assert drawn.fraction.unique().tolist() == [0.25, 1.0]
    assert 0.4 < drawn.tanh.float().mean() < 0.6 and 0.4 < drawn.uniform.float().mean() < 0.6
    start = initial(drawn.rows(slice(500)), 10, torch.Generator().manual_seed(1))["2.weight"] * 12
    spread = start.flatten(1).std(1) / drawn.scale[:500]
    assert spread.min() > 0.9 and spread.max() < 1.1
    bounded = start.flatten(1).abs().amax(1) / drawn.scale[:500] < 3**0.5 + 1e-4
    assert bounded.equal(drawn.uniform[:500])


# --- a zoo on disk ---------------------------------------------------------------------------------------------------


def test_a_zoo_holds_the_accuracies_of_its_networks(made):
    zoo = load_zoo(made, "digits")
    images = load_images("digits", 8)
    assert {split: len(networks) for split, networks in zoo.splits.items()} == {"train": 8, "validation": 2, "test": 4}
    networks = zoo.splits["test"]
    assert list(networks.tensors) == list(SPACE)
    for k in range(4):
        said = module_of(networks.tensors, k, bool(networks.chosen.tanh[k]))(images.images["test"][:50])
        torch.testing.assert_close(networks.accuracy[k], (said.argmax(1) == images.labels["test"][:50]).float().mean())
    assert len(networks.chosen.lr.unique()) == 4
    assert len(load_zoo(made, "digits", {"train": 3}).splits["train"]) == 3


def test_what_was_stopped_goes_on_and_ends_with_the_same_numbers(made, tmp_path, monkeypatch, capsys):
    def interrupted(shard, config, rows):
        if shard.split == "train" and shard.start:
            raise KeyboardInterrupt
        write_shard(shard, config, rows)

    monkeypatch.setattr(sets, "write_shard", interrupted)
    folder = tmp_path / "stopped"
    assert make(folder) == 130
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(InvalidInput, match=r"half-written: 1 of 4 shards .*\n  python -m examples.make_cnn_zoo"):
        load_zoo(folder, "digits")
    assert len(load_zoo(folder, "digits", {"train": 4}).splits["train"]) == 4
    monkeypatch.undo()
    assert make(folder) == 0
    for path in made.glob("*.safetensors"):
        assert_same(path, folder / path.name)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_shard_is_named_the_rest_is_used_and_it_is_made_again(copied, made, how, capsys):
    path = copied / "train-00001.safetensors"
    damage(path, how)
    told = r"train-00001.safetensors.*left out.*\n.*python -m examples.make_cnn_zoo"
    with pytest.warns(UserWarning, match=told) as caught:
        zoo = load_zoo(copied, "digits")
    assert [warning.filename for warning in caught] == [__file__]
    assert zoo.damaged == (path,) and len(zoo.splits["train"]) == 4
    assert make(copied) == 0
    assert "train-00001.safetensors" in (said := capsys.readouterr().err) and "made again" in said
    assert load_file(path)["accuracy"].equal(load_file(made / path.name)["accuracy"])


def test_no_zoo_another_one_and_too_many_are_errors_with_a_remedy(copied, tmp_path):
    with pytest.raises(InvalidInput, match=r"no set of networks in .*\n  python -m examples.make_cnn_zoo .*cifar10"):
        load_zoo(tmp_path / "none", "cifar10")
    with pytest.raises(InvalidInput, match=r"holds networks of 'digits', wanted 'cifar10'.*\n.*data=cifar10"):
        load_zoo(copied, "cifar10")
    with pytest.raises(InvalidInput, match="train: 9; the set .* has 8 train networks"):
        load_zoo(copied, "digits", {"train": 9})
    with pytest.raises(InvalidInput, match="unknown split 'tset'"):
        load_zoo(copied, "digits", {"tset": 1})
    with pytest.raises(InvalidInput, match=r"holds a set made with batch=4\. Give another"):
        make(copied, batch=5)
    (copied / "validation-00000.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(InvalidInput, match="no shard of the validation split"):
        load_zoo(copied, "digits")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "cifra10"}, "did you mean 'cifar10'"),
        ({"lr": [0.1]}, "two ends"),
        ({"lr": [0.1, 0.01]}, "low=0.1 is above high=0.01"),
        ({"steps": [0, 3]}, "steps"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"fractions": [0.0]}, "fractions"),
        ({"tested": 10**6}, "tested: 1000000"),
        ({"train": 0}, "train=0"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changed, message):
    with pytest.raises(InvalidInput, match=message):
        make(tmp_path / "zoo", **changed)
    assert not (tmp_path / "zoo").exists()
