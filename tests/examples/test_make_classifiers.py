"""Classifiers trained together, against one at a time; and a set on disk that is stopped, cut and changed."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from examples.make_classifiers import Training, initial_networks, load_classifiers, load_problem, measure, train_all
from examples.make_classifiers import __main__ as maker
from lopt.errors import InvalidInput
from tests.examples.common import configured

SMALL = {
    "data": "digits",
    "hidden": [16],
    "train": 6,
    "validation": 3,
    "test": 3,
    "shard": 3,
    "steps": 40,
    "threads": 1,
}
WANTED = ("digits", "mlp")


def make(folder, **changed) -> int:
    """What `python -m examples.make_classifiers` does once Hydra has read the configuration."""
    return maker.main(configured("make_classifiers", {**SMALL, "folder": str(folder), **changed}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers") / "set"
    assert make(folder) == 0
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "hidden"), [("mlp", [6]), ("cnn", [3, 4])])
def test_networks_are_trained_together_as_one_at_a_time(network, hidden):
    problem = load_problem("digits", 8, network, hidden)
    networks = initial_networks(problem, 3, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(2)
    weight = next(iter(networks))
    mask = torch.rand(networks[weight].shape, generator=generator).round()
    found = train_all(problem, networks, Training(6, 20, 0.01), torch.Generator().manual_seed(1), {weight: mask})
    measured = measure(problem, found, "test", 50)

    for k in range(3):
        one = {name: x[k].clone().requires_grad_() for name, x in networks.items()}
        with torch.no_grad():
            one[weight].mul_(mask[k])
        optimizer = torch.optim.Adam(one.values(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        generator = torch.Generator().manual_seed(1)
        for _ in range(6):
            rows = torch.randint(len(problem.labels["train"]), (20,), generator=generator)
            outputs = functional_call(problem.module, one, (problem.images["train"][rows],))
            optimizer.zero_grad()
            F.cross_entropy(outputs, problem.labels["train"][rows]).backward()
            gradient = one[weight].grad
            assert gradient is not None
            gradient.mul_(mask[k])
            optimizer.step()
            schedule.step()
        for name, x in one.items():
            torch.testing.assert_close(found[name][k], x.detach(), rtol=1e-3, atol=1e-4)
        assert (found[weight][k][mask[k] == 0] == 0).all()
        outputs = functional_call(problem.module, one, (problem.images["test"][:50],))
        target = problem.labels["test"][:50]
        torch.testing.assert_close(measured.loss[k], F.cross_entropy(outputs, target).detach(), rtol=1e-3, atol=1e-4)
        assert measured.accuracy[k] == (outputs.argmax(1) == target).float().mean()


def test_an_initialisation_is_that_of_pytorch():
    problem = load_problem("digits", 8, "cnn", [4, 8])
    drawn = initial_networks(problem, 200, torch.Generator().manual_seed(0))
    problem.module.apply(lambda part: part.reset_parameters() if isinstance(part, torch.nn.Linear) else None)
    for layer, fan_in in (("0", 9), ("2", 36), ("5", 8)):
        for kind in ("weight", "bias"):
            x = drawn[f"{layer}.{kind}"]
            assert 0.9 * fan_in**-0.5 < x.max() <= fan_in**-0.5 and abs(x.mean()) < 0.1 * fan_in**-0.5
    assert set(drawn) == set(dict(problem.module.named_parameters()))


# --- a set on disk ---------------------------------------------------------------------------------------------------


def test_a_set_holds_networks_before_and_after_training(made):
    found = load_classifiers(made, *WANTED)
    assert {split: len(networks) for split, networks in found.splits.items()} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }
    problem = load_problem("digits", 8, "mlp", [16])
    networks = found.splits["train"]
    assert networks.initial.keys() == networks.final.keys() == set(problem.space)
    after = measure(problem, networks.final, "test", found.config["tested"])
    torch.testing.assert_close(after.accuracy, networks.accuracy)
    torch.testing.assert_close(after.loss, networks.loss)
    before = measure(problem, networks.initial, "test")
    assert (networks.accuracy > before.accuracy + 0.2).all()
    assert len(networks.initial["0.weight"].flatten(1).unique(dim=0)) == 6


def test_a_stopped_command_goes_on_and_ends_with_the_same_numbers(made, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        if any((tmp_path / "set").glob("*.safetensors")):
            raise KeyboardInterrupt
        return made_networks(*arguments)

    made_networks = maker.networks_of
    monkeypatch.setattr(maker, "networks_of", interrupted)
    assert make(tmp_path / "set") == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(InvalidInput, match=r"half-written: 3 of 4 shards .*\n  python -m examples.make_classifiers f"):
        load_classifiers(tmp_path / "set", *WANTED)
    (tmp_path / "set" / ".train-00001.safetensors.abc.tmp").write_bytes(b"half")
    assert make(tmp_path / "set") == 0
    assert not list((tmp_path / "set").glob(".*"))
    first, other = (load_classifiers(folder, *WANTED).splits["test"] for folder in (made, tmp_path / "set"))
    assert all(first.final[name].equal(other.final[name]) for name in first.final)


def test_a_damaged_shard_is_named_and_made_again(copied, made, capsys):
    path = copied / "train-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    told = r"train-00001.*left out.*\n  python -m examples.make_classifiers folder="
    with pytest.warns(UserWarning, match=told) as caught:
        found = load_classifiers(copied, *WANTED)
    assert [warning.filename for warning in caught] == [__file__]
    assert found.damaged == (path,) and len(found.splits["train"]) == 3
    assert make(copied) == 0
    assert "made again" in capsys.readouterr().err
    whole = load_classifiers(made, *WANTED).splits["train"].final["0.bias"]
    assert load_classifiers(copied, *WANTED).splits["train"].final["0.bias"].equal(whole)
    assert load_classifiers(copied, *WANTED, {"train": 4}).splits["train"].final["0.bias"].equal(whole[:4])


def test_no_set_and_another_configuration_are_errors_with_a_remedy(copied, tmp_path):
    with pytest.raises(InvalidInput, match=r"no set of networks in .*\n  python -m examples.make_classifiers .*digits"):
        load_classifiers(tmp_path / "none", *WANTED)
    with pytest.raises(InvalidInput, match=r"holds networks of 'digits', wanted 'cifar10'.*\n.* data=cifar10"):
        load_classifiers(copied, "cifar10", "mlp")
    with pytest.raises(InvalidInput, match=r"of the kind 'mlp', wanted 'cnn'.*\n.* data=digits network=cnn"):
        load_classifiers(copied, "digits", "cnn")
    with pytest.raises(InvalidInput, match="test: 4; the set .* has 3 test networks"):
        load_classifiers(copied, *WANTED, {"test": 4})
    with pytest.raises(InvalidInput, match="unknown split 'tset'; did you mean 'test'"):
        load_classifiers(copied, *WANTED, {"tset": 1})
    with pytest.raises(InvalidInput, match=r"holds a set made with steps=40\. Give another folder"):
        make(copied, steps=41)
    for path in copied.glob("test-*"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InvalidInput, match="no shard of the test split"):
        load_classifiers(copied, *WANTED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "mnits"}, "did you mean 'mnist'"),
        ({"network": "mpl"}, "unknown network 'mpl'; did you mean 'mlp'"),
        ({"hidden": []}, "hidden"),
        ({"steps": 0}, "steps=0"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changed, message):
    with pytest.raises(InvalidInput, match=message):
        make(tmp_path / "set", **changed)
    assert not (tmp_path / "set").exists()
