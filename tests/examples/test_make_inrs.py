"""The maker of INRs: against one network at a time under autograd; and a set that is stopped, cut and changed."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from examples.common.shards import read_manifest, shards
from examples.make_inrs import Fit, crew, fit_sirens, load_inrs, psnr, render
from examples.make_inrs.__main__ import main
from examples.make_inrs.sirens import CHUNK, coordinates, initial_sirens
from lopt.errors import InvalidInput
from tasks import load_images
from tasks.modules.siren import siren
from tests.examples.common import DAMAGES, assert_same, damage

ROOT = Path(__file__).parents[2]
SMALL = {
    "data": "digits",
    "size": 8,
    "train": 12,
    "validation": 4,
    "test": 4,
    "hidden": [16],
    "steps": 60,
    "pixels": 32,
}
SMALL |= {"shard": 4, "workers": 1, "frequency": 8.0, "lr": 0.02, "seed": 0, "initial": 0.5}


def make(folder: Path, **changed) -> int:
    """What `python -m examples.make_inrs` does once Hydra has read the configuration."""
    return main(OmegaConf.create({"folder": str(folder), **SMALL, **changed}))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inrs") / "digits"
    assert make(folder) == 0
    assert (folder / "preview.png").stat().st_size > 1000
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


# --- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [1, 3])
def test_a_batch_is_fitted_as_one_network_at_a_time_with_autograd_and_adam(colours):
    images = torch.rand(3, colours, 6, 6, generator=torch.Generator().manual_seed(1))
    fit = Fit(hidden=(7, 5), frequency=6.0, steps=15, lr=1e-2, pixels=20, initial=0.5)
    found, decibels = fit_sirens(images, fit, torch.Generator().manual_seed(2))

    for k, image in enumerate(images):
        generator = torch.Generator().manual_seed(2)
        initial = initial_sirens(3, [2, 7, 5, colours], 6.0, generator, 0.5)
        module = siren([2, 7, 5, colours], 6.0)
        module.load_state_dict(dict(zip(found, (t[k] for t in initial), strict=True)))
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
        points, values = coordinates(6), image.flatten(1).T
        turns = torch.cat([torch.randperm(36, generator=generator) for _ in range(9)])
        for drawn in turns[: 15 * 20].split(20):
            optimizer.zero_grad()
            F.mse_loss(module(points[drawn]), values[drawn]).backward()
            optimizer.step()
            schedule.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name][k], parameter.detach(), rtol=2e-3, atol=2e-4)
        drawn_by_module = module(points).detach().T.view(colours, 6, 6)
        one = {name: p.detach()[None] for name, p in module.named_parameters()}
        torch.testing.assert_close(render(one, 6, 6.0)[0], drawn_by_module)
        error = F.mse_loss(drawn_by_module, image)
        torch.testing.assert_close(decibels[k], -10 * torch.log10(error), rtol=1e-2, atol=0.05)


def test_every_siren_has_an_initialisation_of_its_own_within_the_bounds_of_the_paper():
    weights = initial_sirens(40, [2, 32, 32, 1], 30.0, torch.Generator().manual_seed(0))
    bounds = [0.5, 2**-0.5, (6 / 32) ** 0.5 / 30, 32**-0.5, (6 / 32) ** 0.5 / 30, 32**-0.5]
    for tensor, bound in zip(weights, bounds, strict=True):
        assert 0.8 * bound < tensor.abs().max() <= bound
        assert len(tensor.flatten(1).unique(dim=0)) == 40


def test_what_is_fitted_does_not_depend_on_what_else_is_in_a_later_chunk():
    images = load_images("digits", 8, standardise=False).images["train"][: CHUNK + 2]
    fit = Fit((8,), 8.0, 20, 1e-2, 32)
    both, _ = fit_sirens(images, fit, torch.Generator().manual_seed(0))
    first, _ = fit_sirens(images[:CHUNK], fit, torch.Generator().manual_seed(0))
    torch.testing.assert_close(both["2.weight"][:CHUNK], first["2.weight"])


def test_more_steps_fit_better():
    images = load_images("digits", 8, standardise=False).images["train"][:8]
    few, many = (
        fit_sirens(images, Fit((16,), 8.0, steps, 1e-2, 64), torch.Generator().manual_seed(0))[1] for steps in (10, 200)
    )
    assert many.mean() > few.mean() + 5


# --- a set on disk ---------------------------------------------------------------------------------------------------


def test_a_set_holds_the_images_that_it_says(made):
    found = load_inrs(made, "digits")
    images = load_images("digits", 8, standardise=False)
    assert {split: len(inrs) for split, inrs in found.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    assert list(found.space) == ["0.weight", "0.bias", "2.weight", "2.bias"] and not found.damaged
    for split, inrs in found.splits.items():
        targets = images.images[split][inrs.index]
        torch.testing.assert_close(inrs.label, images.labels[split][inrs.index])
        torch.testing.assert_close(inrs.psnr, psnr(render(inrs.tensors, 8, 8.0), targets), rtol=1e-3, atol=1e-3)
        # Each INR fits its own image better than another one.
        assert (psnr(render(inrs.tensors, 8, 8.0), targets.roll(1, 0)) < inrs.psnr).all()


def test_a_part_of_a_set_needs_only_its_shards(copied):
    (copied / "train-00002.safetensors").unlink()
    found = load_inrs(copied, "digits", {"train": 6})
    assert len(found.splits["train"]) == 6
    whole = load_inrs(copied, "digits", {"train": 8})
    torch.testing.assert_close(found.splits["train"].tensors["0.bias"], whole.splits["train"].tensors["0.bias"][:6])


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_numbers(made, tmp_path):
    folder = tmp_path / "killed"
    words = [f"{k}={v}".replace(" ", "") for k, v in SMALL.items()]
    command = [sys.executable, "-m", "examples.make_inrs", f"folder={folder}", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not any(folder.glob("*.safetensors")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    (folder / ".train-00001.safetensors.abc.tmp").write_bytes(b"half")
    (folder / "test-00000.safetensors").unlink(missing_ok=True)  # where all was done before it was killed
    with pytest.raises(InvalidInput, match=r"half-written: .* of 5 shards are missing.*\n.*python -m examples.make_i"):
        load_inrs(folder, "digits")
    assert make(folder) == 0
    assert not list(folder.glob(".*"))
    for shard in shards(made, read_manifest(made)):
        assert_same(shard.path, folder / shard.path.name)


def test_ctrl_c_stops_and_says_how_to_go_on(made, tmp_path, monkeypatch, capsys):
    def interrupted(job):
        if job.shard.start:
            raise KeyboardInterrupt
        return crew_make(job)

    crew_make = crew.make
    monkeypatch.setattr(crew, "make", interrupted)
    assert make(tmp_path / "set") == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert make(tmp_path / "set") == 0
    assert_same(tmp_path / "set" / "train-00002.safetensors", made / "train-00002.safetensors")


def test_another_configuration_is_refused_and_named(copied):
    with pytest.raises(InvalidInput, match=r"folder: .* holds a set made with steps=60\. Give another"):
        make(copied, steps=61)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_shard_is_named_and_the_rest_is_used(copied, how):
    path = copied / "train-00001.safetensors"
    damage(path, how)
    told = r"train-00001.safetensors.*left out.*\n.*python -m examples.make_inrs"
    with pytest.warns(UserWarning, match=told) as caught:
        found = load_inrs(copied, "digits")
    assert [warning.filename for warning in caught] == [__file__]
    assert found.damaged == (path,)
    assert found.splits["train"].index.tolist() == [*range(4), *range(8, 12)]


def test_what_is_damaged_is_made_again(copied, made, capsys):
    path = copied / "test-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(InvalidInput, match="no shard of the test split"),
    ):
        load_inrs(copied, "digits")
    assert make(copied) == 0
    assert "test-00000.safetensors" in (said := capsys.readouterr().err) and "made again" in said
    assert_same(path, made / path.name)


def test_no_set_another_data_set_and_too_many_are_errors_with_a_remedy(made, tmp_path):
    with pytest.raises(InvalidInput, match=r"no set of INRs in .*\n  python -m examples.make_inrs .* data=mnist"):
        load_inrs(tmp_path / "none", "mnist")
    with pytest.raises(InvalidInput, match=r"holds INRs of 'digits', wanted 'mnist'.*\n.*data=mnist"):
        load_inrs(made, "mnist")
    with pytest.raises(InvalidInput, match="train: 13; the set .* has 12 train INRs"):
        load_inrs(made, "digits", {"train": 13})


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": 99, "config": {}}'])
def test_a_damaged_manifest_is_an_error(copied, text):
    (copied / "manifest.json").write_text(text)
    with pytest.raises(InvalidInput, match="manifest.json"):
        load_inrs(copied, "digits")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "mnits"}, "did you mean 'mnist'"),
        ({"train": 10**6}, "train: 1000000; 'digits' has"),
        ({"steps": 0}, "steps=0"),
        ({"hidden": []}, "hidden"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changed, message):
    with pytest.raises(InvalidInput, match=message):
        make(tmp_path / "set", **changed)
    assert not (tmp_path / "set").exists()
