"""The family of MLPs on images: loss, batches, initial weights, and several data sets in one population."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import vmap

from lopt.errors import InvalidInput
from tasks import ImageData, ImageMLP, Split, TaskFamily, load_images
from tasks import image_family as image_family_module
from tasks.data import SPLITS
from tasks.supervised import Supervised


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LOPT_CACHE", str(folder))
        patch.delenv("LOPT_DATA", raising=False)
        yield folder


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only_task(**arguments: Any) -> Supervised:
    options: dict[str, Any] = {"batch_size": 16, **arguments}
    (task,) = ImageMLP(**options).tasks
    assert isinstance(task, Supervised)
    return task


def test_loss_is_the_modules_cross_entropy() -> None:
    task = only_task(hidden=(12, 7), activation="tanh")
    module = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 10))
    params = task.init(seeded(0))
    module.load_state_dict(params)
    images, labels = task.batch("train", seeded(1))
    assert images.shape == (16, 64) and labels.shape == (16,)
    torch.testing.assert_close(task.loss(params, (images, labels)), F.cross_entropy(module(images), labels))
    before = {k: v.clone() for k, v in params.items()}
    torch.func.grad(task.loss)(params, (images, labels))
    assert all(torch.equal(params[k], before[k]) for k in params)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_activations_and_weight_space(activation: str) -> None:
    task = only_task(activation=activation, hidden=(5,))
    expected = {"0.weight": "g0:5, in=64", "0.bias": "g0:5", "2.weight": "out=10, g0:5", "2.bias": "out=10"}
    assert {k: ", ".join(map(str, axes)) for k, axes in task.weight_space.items()} == expected
    task.weight_space.check(task.init(seeded(0)))
    # A permutation of the hidden neurons leaves the loss as it is.
    params, batch = task.init(seeded(0)), task.evaluation_batch("validation")
    permuted = task.weight_space.permute(params, task.weight_space.random_permutations(seeded(3)))
    torch.testing.assert_close(task.loss(permuted, batch), task.loss(params, batch))


def test_no_hidden_layer_is_a_linear_classifier() -> None:
    assert list(only_task(hidden=()).init(seeded(0))) == ["0.weight", "0.bias"]


def test_a_population_equals_the_loop() -> None:
    task = only_task()
    params = [task.init(seeded(k)) for k in range(3)]
    drawn = torch.stack([task.draw("train", seeded(k)) for k in range(3)])
    stacked = {k: torch.stack([p[k] for p in params]) for k in params[0]}
    images, labels = vmap(lambda d: task.gather("train", d))(drawn)
    losses = vmap(lambda p, d: task.loss(p, task.gather("train", d)))(stacked, drawn)
    for k in range(3):
        alone = task.gather("train", drawn[k])
        assert torch.equal(images[k], alone[0]) and torch.equal(labels[k], alone[1])
        torch.testing.assert_close(losses[k], task.loss(params[k], alone))


def test_the_seed_fixes_weights_and_batches() -> None:
    task = only_task()
    torch.manual_seed(5)
    global_state = torch.get_rng_state()
    one, same, other = (task.init(seeded(k)) for k in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) and not torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(task.draw("test", seeded(1)), task.draw("test", seeded(1)))
    assert not torch.equal(task.draw("test", seeded(1)), task.draw("test", seeded(2)))
    generator = seeded(1)
    assert not torch.equal(task.draw("test", generator), task.draw("test", generator))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_initial_weights_are_pytorchs() -> None:
    params = only_task(hidden=(400,)).init(seeded(0))
    for name, fan_in in (("0.weight", 64), ("0.bias", 64), ("2.weight", 400)):
        bound = fan_in**-0.5  # nn.Linear draws weights and biases uniformly from +-1/sqrt(fan_in)
        assert bound * 0.97 < params[name].abs().max() <= bound
        assert params[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not params[name].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, "float64"])
def test_dtype_of_weights_images_and_loss(dtype: torch.dtype | str) -> None:
    task = only_task(dtype=dtype)
    params, batch = task.init(seeded(0)), task.batch("train", seeded(0))
    assert {p.dtype for p in params.values()} == {batch[0].dtype} == {task.loss(params, batch).dtype} == {torch.float64}


def test_evaluation_batch() -> None:
    data = load_images("digits")
    for split in SPLITS:
        images, labels = only_task().evaluation_batch(split)
        assert torch.equal(images, data.images[split].flatten(1)) and torch.equal(labels, data.labels[split])
        images, labels = only_task(evaluation_size=30).evaluation_batch(split)
        assert torch.equal(images, data.images[split][:30].flatten(1)) and torch.equal(labels, data.labels[split][:30])
    assert len(only_task(evaluation_size=10**6).evaluation_batch("test")[1]) == 360


def test_classes_subset_sets_the_outputs() -> None:
    task = only_task(classes=[5, 6, 7], hidden=(4,))
    assert task.weight_space.shapes["2.weight"] == (3, 4)
    assert set(task.evaluation_batch("test")[1].tolist()) == {0, 1, 2}


def test_batches_reach_every_row() -> None:
    task = only_task(batch_size=20_000)
    for split in SPLITS:
        drawn = task.draw(split, seeded(0))
        assert sorted(drawn.unique().tolist()) == list(task.rows[split])


# --- several data sets -----------------------------------------------------------------------------------------------


def constant_images(name: str, *_, **__) -> ImageData:
    """Images that all show one value, which tells the data set."""
    value, count = {"mnist": (1.0, 5), "fashion_mnist": (2.0, 9)}[name]
    images: dict[Split, Tensor] = {split: torch.full((count + k, 1, 8, 8), value) for k, split in enumerate(SPLITS)}
    labels: dict[Split, Tensor] = {split: torch.arange(len(x)) % 10 for split, x in images.items()}
    return ImageData(name, images, labels, 10)


def test_each_task_sees_its_own_images_in_one_population(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_family_module, "load_images", constant_images)
    family = ImageMLP(["mnist", "fashion_mnist"], batch_size=400)
    assert isinstance(family, TaskFamily)
    one, two = family.tasks
    assert one.name == "image_mlp/mnist" and one.weight_space == two.weight_space
    for split in SPLITS:
        drawn = torch.stack([one.draw(split, seeded(0)), two.draw(split, seeded(0))])
        images, labels = vmap(functools.partial(one.gather, split))(drawn)  # one task gathers for both
        assert images[0].unique().tolist() == [1.0] and images[1].unique().tolist() == [2.0]
        for k, (task, name) in enumerate(((one, "mnist"), (two, "fashion_mnist"))):
            alone = constant_images(name)
            assert set(labels[k].tolist()) == set(alone.labels[split].tolist())
            evaluated = task.evaluation_batch(split)
            assert torch.equal(evaluated[0], alone.images[split].flatten(1))
            assert torch.equal(evaluated[1], alone.labels[split])


def test_every_data_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_family_module, "load_images", constant_images)
    family, generator = ImageMLP(["mnist", "fashion_mnist"]), seeded(0)
    names = [family.sample(generator).name for _ in range(200)]
    assert 70 < names.count("image_mlp/mnist") < 130
    assert [family.sample(seeded(4)).name for _ in range(3)] == [family.sample(seeded(4)).name] * 3


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "digts"}, "did you mean 'digits'"),
        ({"data": []}, r"data=\[\]: give the name"),
        ({"data": None}, "data=None: give the name"),
        ({"data": ["mnist", "mnist"]}, "each once"),
        ({"data": ["mnist", "cifar10"]}, "mnist 1 and 10, cifar10 3 and 10"),
        ({"size": 0}, "size=0"),
        ({"hidden": 32}, "hidden=32: give a list of widths"),
        ({"hidden": (32, 0)}, "hidden, width=0"),
        ({"activation": "rlu"}, "unknown activation 'rlu'; did you mean 'relu'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"evaluation_size": 0}, "evaluation_size=0"),
        ({"classes": [1]}, "too few"),
        ({"dtype": torch.int32}, "dtype=torch.int32"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ImageMLP(**arguments)


def test_building_a_family_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_family_module, "load_images", lambda *_: pytest.fail("the constructor loads data"))
    ImageMLP("mnist")
    monkeypatch.setenv("LOPT_DATA", "/nowhere")
    with pytest.raises(InvalidInput, match="LOPT_DATA='/nowhere' is no folder"):
        ImageMLP("mnist")


def test_yaml_names_the_defaults() -> None:
    file = OmegaConf.load(Path(__file__).parents[2] / "configs/family/image_mlp.yaml")
    outer = {"device": "cpu", "dtype": "float32"}  # both are given once, for the whole run
    family, default = instantiate(OmegaConf.create({**outer, "family": file}).family), ImageMLP()
    assert isinstance(family, ImageMLP)
    assert vars(family) == vars(default)
