"""Small versions of the three questions to the weights of networks, and what they are made of."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from examples.common.methods import prepared
from examples.common.training import Batch
from examples.sine_waves.__main__ import METHODS, main
from examples.sine_waves.adaptation import ADAPTERS
from examples.sine_waves.classifiers import Corruption, Images, accuracies, classify, train_classifiers
from examples.sine_waves.representation import Contrast, contrastive_losses, probe, view
from examples.sine_waves.waves import evaluate_waves, fit_waves, make_waves
from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tasks.modules.siren import siren
from tests.examples.common import column, configured

FIT = {"hidden": [16, 16], "omega": 3.0, "initial": 1.0, "steps": 120, "lr": 0.02, "points": 64}
WAVES = {**FIT, "train": 120, "validation": 40, "test": 100}
SMALL = {"channels": 8, "layers": 2, "code": 4, "pool": "max", "head": 32, "width": 64}
CLASSIFIERS = {"data": "digits", "hidden": [16], "train": 100, "validation": 30, "test": 60, "steps": 60, "lr": 0.01}
RECIPE = {"lr": 0.01, "batch_size": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the networks go: made once for all tests."""
    return tmp_path_factory.mktemp("sines")


def run(task, folder, out, seeds=1, **own):
    first = {"classifiers": CLASSIFIERS} if task == "adaptation" else {"waves": WAVES}
    own = {**first, **own, "recipe": {**RECIPE, **own.get("recipe", {})}}
    top = {"task": task, "folder": str(folder), "out": str(out), "seeds": seeds, "threads": 1, "model": SMALL}
    return main(configured("sine_waves", {**top, task: own}))


# --- the three questions ---------------------------------------------------------------------------------------------


def test_regression_dws_beats_the_mlp_and_more_networks_help(folder, tmp_path):
    own = {"models": ["dws", "mlp"], "sizes": [30, 120], "recipe": {"epochs": 30}}
    assert run("regression", folder, tmp_path, **own) == 0
    text = (tmp_path / "table.md").read_text()
    dws, mlp = column(text), column(text, 3)
    assert dws["120"] < 0.9 * mlp["120"]
    assert dws["120"] < dws["30"]
    assert dws["120"] < 0.5 * 9.5**2 / 12  # the variance of the frequencies
    assert (tmp_path / "regression.png").stat().st_size > 1000

    before = (tmp_path / "30" / "dws-0.json").stat().st_mtime_ns  # what is done is not done again
    assert run("regression", folder, tmp_path, **own) == 0
    assert (tmp_path / "30" / "dws-0.json").stat().st_mtime_ns == before


def test_representation_the_probe_finds_more_in_what_dws_learned(folder, tmp_path):
    own = {"models": ["dws", "mlp"], "recipe": {"epochs": 20, "batch_size": 40}, "contrast": {"embedding": 8}}
    waves = {**WAVES, "amplitude": [1.0, 10.0]}
    assert run("representation", folder, tmp_path, waves=waves, **own) == 0
    found = column((tmp_path / "table.md").read_text())
    assert found["DWS"] < 0.9 * found["MLP"]
    assert (tmp_path / "representation.png").stat().st_size > 1000


def test_adaptation_dws_makes_classifiers_better_on_the_new_domain(folder, tmp_path):
    own = {"models": ["none", "dws", "mlp"], "recipe": {"epochs": 15}, "shown": 32}
    assert run("adaptation", folder, tmp_path, **own) == 0
    found = column((tmp_path / "table.md").read_text())
    assert found["DWS"] > found["no adaptation"] + 2
    assert found["DWS"] > found["MLP"] + 1
    assert (tmp_path / "adaptation.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("task", "models", "own"),
    [
        ("regression", METHODS, {"sizes": [20]}),
        ("representation", METHODS, {}),
        ("adaptation", ADAPTERS, {"shown": 4}),
    ],
)
def test_every_method_runs_over_several_seeds(tmp_path, task, models, own):
    tiny = {"train": 20, "validation": 4, "test": 6, "steps": 2, "hidden": [4], "shard": 20}
    own |= {"classifiers": {**CLASSIFIERS, **tiny}} if task == "adaptation" else {"waves": {**WAVES, **tiny}}
    assert run(task, tmp_path / "networks", tmp_path, 2, models=list(models), recipe={"epochs": 1}, **own) == 0
    assert (tmp_path / "table.md").read_text().count("±") == len(models)


# --- what they are made of -------------------------------------------------------------------------------------------


def test_waves_are_fitted_as_one_network_at_a_time_with_autograd_and_adam():
    wave = torch.tensor([[1.0, 2.0], [5.0, 0.5]])
    config = {**FIT, "hidden": [6, 5], "steps": 20}
    found, _ = fit_waves(wave, config, torch.Generator().manual_seed(0))
    start, _ = fit_waves(wave, {**config, "lr": 0.0}, torch.Generator().manual_seed(0))
    x = torch.linspace(-math.pi, math.pi, 64).unsqueeze(1)
    for k, (amplitude, frequency) in enumerate(wave):
        module = siren([1, 6, 5, 1], 3.0)
        module.load_state_dict({name: t[k] for name, t in start.items()})
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        for _ in range(20):
            optimizer.zero_grad()
            F.mse_loss(module(x), amplitude * torch.sin(frequency * x)).backward()
            optimizer.step()
            schedule.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name][k], parameter.detach(), rtol=1e-3, atol=1e-4)


def test_a_set_holds_the_waves_that_it_says(folder):
    config: Any = OmegaConf.to_container(configured("sine_waves", {"regression": {"waves": WAVES}}).regression.waves)
    waves = make_waves(folder / "regression", config, Console(quiet=True))
    some = waves.splits["test"]
    x = torch.linspace(-math.pi, math.pi, 200)
    said = evaluate_waves(list(some.tensors.values()), x, 3.0)
    wanted = some.wave[:, :1] * torch.sin(some.wave[:, 1:] * x)
    left = (said - wanted).square().mean(1) / wanted.square().mean(1)
    assert left.median() < 0.05 and some.error.median() < 0.05
    assert some.wave[:, 0].eq(1).all() and some.wave[:, 1].min() > 0.5 and some.wave[:, 1].max() < 10


def test_the_contrastive_loss_is_that_of_the_formula():
    one, other = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    both = F.normalize(torch.cat([one, other]), dim=1).double()
    for k in range(4):
        expected = 0.0
        for i, j in ((k, k + 4), (k + 4, k)):
            terms = [math.exp(float(both[i] @ both[m]) / 0.5) for m in range(8) if m != i]
            expected -= math.log(math.exp(float(both[i] @ both[j]) / 0.5) / sum(terms)) / 2
        assert float(contrastive_losses(one, other, 0.5)[k]) == pytest.approx(expected, rel=1e-5)


def test_a_view_is_noisy_and_masked():
    x = {"weight": torch.randn(1, 300, 300) * 3 + 1}
    found = view(x, Contrast(noise=0.2, masked=0.5), torch.Generator().manual_seed(0))["weight"]
    kept = found != 0
    assert 0.48 < kept.float().mean() < 0.52
    assert (found - x["weight"])[kept].std() == pytest.approx(0.6, rel=0.05)


def test_the_probe_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator), torch.randn(40, 2, generator=generator)
    solved = np.linalg.lstsq(np.c_[x[:30].numpy(), np.ones(30)], y[:30].numpy(), rcond=None)[0]
    expected = ((np.c_[x[30:].numpy(), np.ones(10)] @ solved - y[30:].numpy()) ** 2).mean()
    assert probe(x[:30], y[:30], x[30:], y[30:]) == pytest.approx(expected, rel=1e-4)


def test_classifiers_are_trained_as_one_module_at_a_time():
    generator = torch.Generator().manual_seed(0)
    images = Images(torch.randn(60, 3, 4, 4, generator=generator), torch.arange(60) % 3, 3)
    pairs = torch.tensor([[0, 2], [1, 0]])
    config = {"hidden": [5], "lr": 0.01, "steps": 6, "batch": 8}
    found = train_classifiers(images, pairs, config, torch.Generator().manual_seed(1))
    start = train_classifiers(images, pairs, {**config, "lr": 0.0}, torch.Generator().manual_seed(1))
    modules = [nn.Sequential(nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in pairs]
    optimizers = []
    for k, module in enumerate(modules):
        module.load_state_dict({name: x[k] for name, x in start.items()})
        optimizers.append(torch.optim.Adam(module.parameters(), lr=0.01))
    generator = torch.Generator().manual_seed(1)
    for x in start.values():
        if x.dim() == 3:
            torch.randn(x.shape, generator=generator)
    for _ in range(6):
        shown, which = images.draw(pairs, 8, generator)
        for module, optimizer, x, y in zip(modules, optimizers, shown, which, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
    shown, which = images.draw(pairs, 50, generator)
    for k, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name][k], parameter.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(classify(found, shown)[k], module(shown[k]), rtol=1e-3, atol=1e-4)
        right = (module(shown[k]).argmax(1) == which[k]).float().mean()
        torch.testing.assert_close(accuracies(found, shown, which)[k], right)


def test_images_of_a_pair_are_of_its_classes():
    labels = torch.arange(50) % 5
    images = Images(labels.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels, 5)
    shown, which = images.draw(torch.tensor([[3, 1], [0, 4]]), 100, torch.Generator().manual_seed(0))
    assert shown[0, :, 0].eq(torch.tensor([3.0, 1.0])[which[0]]).all()
    assert shown[1, :, 0].eq(torch.tensor([0.0, 4.0])[which[1]]).all()
    assert which.sum(1).min() > 20 and which.sum(1).max() < 80


def test_a_corruption_of_nothing_only_mirrors_and_turns_are_by_the_angle():
    images = torch.randn(1, 40, 25, generator=torch.Generator().manual_seed(0))
    found = Corruption(degrees=0.0, noise=0.0, jitter=0.0)(images, torch.Generator().manual_seed(0)).view(40, 5, 5)
    square = images.view(40, 5, 5)
    same = (found - square).abs().amax((1, 2)) < 1e-4
    mirrored = (found - square.flip(2)).abs().amax((1, 2)) < 1e-4
    assert same.any() and mirrored.any() and (same | mirrored).all()

    # A disc around the middle looks the same from every angle, what stands beside it does not.
    y, x = torch.meshgrid(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 21), indexing="ij")
    disc, beside = (-4 * (x**2 + y**2)).exp(), (-4 * ((x - 0.5) ** 2 + y**2)).exp()
    both = torch.stack([disc.flatten(), beside.flatten()]).unsqueeze(1).expand(2, 30, 441)
    turned = Corruption(degrees=90.0, noise=0.0, jitter=0.0)(both, torch.Generator().manual_seed(0))
    change = (turned - both).abs().amax(2)
    assert change[0].max() < 0.05 < 0.3 < change[1].max()

    noisy = Corruption(degrees=0.0, noise=0.5, jitter=0.0)(torch.zeros(1, 1000, 25), torch.Generator().manual_seed(0))
    assert noisy.std() == pytest.approx(0.5, rel=0.05)


def test_only_the_aligned_method_sees_other_weights():
    space = WeightSpace.linear_stack({"0.weight": (4, 1), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,)})
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(6, *shape, generator=generator) for name, shape in space.shapes.items()}
    splits = {"train": Batch(tensors, torch.zeros(6))}
    assert prepared("mlp", space, splits)["train"].tensors["0.bias"].equal(tensors["0.bias"])
    near = prepared("mlp_aligned", space, splits)["train"].tensors
    assert not near["0.bias"].equal(tensors["0.bias"])
    torch.testing.assert_close(near["0.bias"].sort(1).values, tensors["0.bias"].sort(1).values)


# --- what bad input gets ---------------------------------------------------------------------------------------------


def test_another_configuration_in_the_folder_and_bad_settings_are_errors(tmp_path):
    tiny = {**WAVES, "train": 4, "validation": 2, "test": 2, "steps": 2}
    own = {"models": ["mlp"], "sizes": [4], "recipe": {"epochs": 1}}
    assert run("regression", tmp_path, tmp_path / "out", waves=tiny, **own) == 0
    with pytest.raises(InvalidInput, match=r"holds a set made with steps=2\. Give another folder="):
        run("regression", tmp_path, tmp_path / "out", waves={**tiny, "steps": 3}, **own)
    with pytest.raises(InvalidInput, match=r"regression.sizes=\[5\].*at most 4"):
        run("regression", tmp_path, tmp_path / "out", waves=tiny, **{**own, "sizes": [5]})
    with pytest.raises(InvalidInput, match="unknown task 'regresion'; did you mean 'regression'"):
        run("regresion", tmp_path, tmp_path / "out")
    with pytest.raises(InvalidInput, match="unknown model 'dsw'; did you mean 'dws'"):
        run("representation", tmp_path, tmp_path / "out", models=["dsw"])
    with pytest.raises(InvalidInput, match=r"frequency=\[3, 1\]"):
        run("regression", tmp_path, tmp_path / "out", waves={**tiny, "frequency": [3, 1]}, **own)


def test_a_damaged_shard_is_named_and_made_again(tmp_path, capsys):
    tiny = {**WAVES, "train": 4, "validation": 2, "test": 2, "steps": 2}
    own = {"models": ["mlp"], "sizes": [4], "recipe": {"epochs": 1}, "waves": tiny}
    assert run("regression", tmp_path, tmp_path / "out", **own) == 0
    path = tmp_path / "regression" / "train-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert run("regression", tmp_path, tmp_path / "out", **own) == 0
    assert "train-00000.safetensors" in (said := capsys.readouterr().err) and "it is made again" in said
    assert len(path.read_bytes()) == len(whole)
