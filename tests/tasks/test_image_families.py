"""What the families on images do with their data: fits of single images, autoencoders, shared tables."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.distributions import Bernoulli, Normal, kl_divergence

from lopt.errors import InvalidInput
from tasks import (
    Autoencoder,
    ConvAutoencoder,
    ImageCNN,
    ImageFamily,
    ImageFit,
    ImageMLP,
    ImageViT,
    VariationalAutoencoder,
    load_images,
)
from tasks.data import SPLITS
from tasks.image_family import _loaded


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first(family: ImageFamily) -> Any:
    return family.tasks[0]


def picture(task: Any, size: int) -> torch.Tensor:
    """The image (C, S, S) from all its pixels and their coordinates."""
    canvas = torch.full((size, size, task.targets["train"].shape[1]), torch.nan)
    for split in SPLITS:
        places, colours = task.evaluation_batch(split)
        rows, columns = ((places + 1) / 2 * (size - 1)).round().long().unbind(1)
        assert canvas[rows, columns].isnan().all()  # each pixel once
        canvas[rows, columns] = colours
    return canvas.movedim(-1, 0)


def test_the_pixels_of_a_fit_make_up_the_image() -> None:
    family = ImageFit("digits", size=8, count=3)
    images = load_images("digits", standardise=False).images["train"]
    for k, task in enumerate(family.tasks):
        torch.testing.assert_close(picture(task, 8), 2 * images[k] - 1)
    assert {family.sample(seeded(k)).name for k in range(20)} == {f"image_fit/digits/{k}" for k in range(3)}
    assert len({task.population for task in family.tasks}) == 1


def test_a_photograph_is_cut_to_its_middle(tmp_path: Path) -> None:
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (task,) = ImageFit(str(tmp_path / "wide.png"), size=8).tasks
    expected = torch.from_numpy(pixels[:, 6:14]).movedim(-1, 0) / 127.5 - 1
    torch.testing.assert_close(picture(task, 8), expected)
    (china,) = ImageFit("china", size=16).tasks
    image = picture(china, 16)
    assert image.shape == (3, 16, 16) and image.abs().max() <= 1 and image.std() > 0.2


def test_images_that_cannot_be_fitted(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(InvalidInput, match="cannot be read as an image"):
        ImageFit(str(tmp_path / "no.png")).sample(seeded(0))
    with pytest.raises(InvalidInput, match="has 1078 train images"):
        ImageFit("digits", count=2000).sample(seeded(0))


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("kind", [Autoencoder, ConvAutoencoder])
def test_autoencoders_are_compared_with_their_input(kind, loss: str) -> None:
    task = kind(loss=loss, standardise=False, evaluation_size=20).tasks[0]
    params = task.init(seeded(0))
    images, targets = task.evaluation_batch("test")
    assert torch.equal(images, targets) and len(images) == 20 and 0 <= images.min() < images.max() <= 1
    outputs = torch.func.functional_call(task.module, params, images)
    expected = (outputs - images).square() if loss == "mse" else F.softplus(outputs) - images * outputs
    torch.testing.assert_close(task.loss(params, (images, targets)), expected.mean())


def test_the_evidence_bound() -> None:
    task = first(VariationalAutoencoder(hidden=(8,), latent=3, dtype="float64", evaluation_size=30))
    params = task.init(seeded(0))
    images, noise = batch = task.evaluation_batch("validation")
    assert noise.shape == (30, 3) and abs(noise.mean()) < 0.4
    mean, log_variance = torch.func.functional_call(
        task.module.encoder, {k.removeprefix("encoder."): p for k, p in params.items() if "encoder" in k}, images
    ).chunk(2, 1)
    posterior = Normal(mean, log_variance.exp().sqrt())
    logits = torch.func.functional_call(
        task.module.decoder,
        {k.removeprefix("decoder."): p for k, p in params.items() if "decoder" in k},
        posterior.mean + posterior.stddev * noise,
    )
    log_likelihood = Bernoulli(logits=logits, validate_args=False).log_prob(images).sum(1)
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(task.loss(params, batch), (divergence - log_likelihood).mean() / 64)
    one, other = (task.draw("train", seeded(k)) for k in (0, 1))
    assert not torch.equal(one.noise, other.noise) and one.noise.dtype == torch.float64


@pytest.mark.parametrize("kind", [ImageMLP, ImageCNN, ImageViT, ConvAutoencoder, VariationalAutoencoder])
def test_example_inputs_are_what_the_network_takes(kind) -> None:
    family = kind(dtype="float64")
    task = first(family)
    images = load_images("digits", dtype="float64").images["train"][:2]
    outputs = task.module(*family.example_inputs(images.flatten(1) if family.flat else images))
    assert all(len(x) == 2 for x in (outputs if isinstance(outputs, tuple) else (outputs,)))


def test_families_that_ask_for_the_same_images_share_them() -> None:
    one, two = ImageMLP(hidden=(3,)), ConvAutoencoder()
    pointers = [first(family).inputs["train"].data_ptr() for family in (one, two)]
    assert pointers[0] == pointers[1]
    other = ImageMLP(hidden=(3,), size=7)
    assert first(other).inputs["train"].data_ptr() != pointers[0]
    gc.collect()
    before = len(_loaded)
    del other
    gc.collect()
    assert len(_loaded) == before - 1
