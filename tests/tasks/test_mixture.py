"""Mixtures and varied arguments."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lopt.errors import InvalidInput
from tasks import (
    Autoencoder,
    ConvAutoencoder,
    ImageCNN,
    ImageMLP,
    LossScaling,
    Mixture,
    ParameterScaling,
    Quadratic,
    RecurrentLanguageModel,
    TaskFamily,
    TransformerLanguageModel,
    Varied,
    log_range,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(family: TaskFamily, seed: int) -> Any:
    return family.sample(seeded(seed))


def sizes(family: TaskFamily, count: int) -> Counter[int]:
    generator = seeded(0)
    return Counter(family.sample(generator).weight_space.shapes["w"][0] for _ in range(count))


def test_families_come_by_weight() -> None:
    families = [Quadratic(dimensions=d) for d in (1, 2, 3)]
    even, uneven = sizes(Mixture(families), 3000), sizes(Mixture(families, [1, 0, 3]), 2000)
    assert all(abs(even[d] - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for d in (1, 2, 3))
    assert uneven[2] == 0 and abs(uneven[1] - 500) < 4 * (2000 * 3 / 16) ** 0.5


def test_mixtures_nest() -> None:
    inner = Mixture([Quadratic(dimensions=1), Quadratic(dimensions=2)])
    counts = sizes(Mixture([inner, Quadratic(dimensions=3)]), 4000)
    assert abs(counts[3] - 2000) < 130 and abs(counts[1] - 1000) < 110


def test_every_combination_is_drawn_equally_often() -> None:
    family = Varied(Quadratic, dimensions=[2, 3], condition=[10.0, 20.0, 20.0])
    generator = seeded(1)
    drawn: list[Any] = [family.sample(generator) for _ in range(3000)]
    counts = Counter((len(t.curvature), round(float(t.curvature[0] / t.curvature[-1]))) for t in drawn)
    assert set(counts) == {(d, c) for d in (2, 3) for c in (10, 20)} and family.count == 6
    assert all(abs(counts[d, 10] - 500) < 90 and abs(counts[d, 20] - 1000) < 110 for d in (2, 3))


def test_a_combination_is_built_once_and_is_one_population() -> None:
    built = []

    def make(**arguments) -> ImageMLP:
        built.append(arguments)
        return ImageMLP(**arguments)

    family = Varied(make, hidden=[[4], [5]], activation=["relu", "tanh"])
    tasks = [family.sample(seeded(seed)) for seed in range(60)]
    assert len(built) == 4
    by_population = {task.population: (task.weight_space, str(task.module)) for task in tasks}
    # relu and tanh have one weight space, and yet are two populations.
    assert len(by_population) == 4 and len({space for space, _ in by_population.values()}) == 2
    assert all((task.weight_space, str(task.module)) == by_population[task.population] for task in tasks)


def test_members_draw_an_architecture_and_their_samples_a_population() -> None:
    family = ParameterScaling(Mixture([Varied(ImageMLP, hidden=[[4], [5]]), Quadratic(dimensions=3)]))
    populations = set()
    for seed in range(20):
        generator = seeded(seed)
        member = family.member(generator)
        assert len({member.sample(generator).population for _ in range(3)}) == 1
        populations.add(member.sample(generator).population)
    assert len(populations) == 3
    plain = LossScaling(Quadratic())
    assert plain.member(seeded(0)) is plain


def test_all_combinations_share_their_images() -> None:
    family = Varied(ImageMLP, hidden=[[4], [5]], batch_size=[8, 16])
    tasks = [sample(family, seed) for seed in range(9)]
    assert len({task.population for task in tasks}) > 1
    assert len({task.inputs["train"].data_ptr() for task in tasks}) == 1


@pytest.mark.parametrize("family", [Autoencoder, ConvAutoencoder, ImageCNN, RecurrentLanguageModel])
def test_arguments_that_a_family_passes_on_may_vary(family: type[TaskFamily]) -> None:
    assert {sample(Varied(family, batch_size=[3, 5]), seed).batch_size for seed in range(9)} == {3, 5}


def test_a_partial_holds_what_does_not_vary() -> None:
    family = Varied(functools.partial(TransformerLanguageModel, blocks=1), width=[8, 16], length=[4])
    task = sample(family, 0)
    assert task.inputs["train"].shape[1] == 4 and "blocks.1.norm1.weight" not in task.weight_space


def test_log_range() -> None:
    assert log_range(16, 128, 4) == [16, 32, 64, 128]
    assert log_range(1, 3, 10) == [1, 2, 3]  # each once
    assert log_range(0.5, 0.5, 3, whole=False) == [0.5] * 3
    assert log_range(8, 64, 1) == [8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture([]), r"families=\[\]"),
        (lambda: Mixture(Quadratic()), "give a list"),  # pyright: ignore[reportArgumentType]
        (lambda: Mixture([Quadratic(), 3]), r"\[3\] are no task families"),  # pyright: ignore[reportArgumentType]
        (lambda: Mixture([Quadratic()], [1, 2]), "give 1 numbers"),
        (lambda: Mixture([Quadratic()], [-1]), "at least 0"),
        (lambda: Mixture([Quadratic()], 3), "weights=3: give a list"),  # pyright: ignore[reportArgumentType]
        (lambda: Mixture([Quadratic()], [0]), "at least one must be above 0"),
        (lambda: Varied(ImageMLP), "choices: none"),
        (lambda: Varied(ImageMLP, hiden=[[3]]), "unknown argument of ImageMLP 'hiden'; did you mean 'hidden'"),
        (lambda: Varied(ImageMLP, batchsize=[3]), "did you mean 'batch_size'"),
        (lambda: Varied(Autoencoder, batchsize=[3]), "unknown argument of Autoencoder.*did you mean 'batch_size'"),
        (lambda: Varied(ImageMLP, activation="relu"), "activation='relu': give a list of options"),
        (lambda: Varied(ImageMLP, activation=[]), r"activation=\[\]"),
        (lambda: Varied(ImageMLP, hidden=[[3], [4]], activation=["relu", "rlu"]), "did you mean 'relu'"),
        (lambda: Varied(Quadratic()), "family=.*give a class"),  # pyright: ignore[reportArgumentType]
        (lambda: Varied(dict, a=[1]), "makes a dict, which is no task family"),  # pyright: ignore[reportArgumentType]
        (lambda: log_range(0, 3, 2), "0 is no positive number"),
        (lambda: log_range(4, 3, 2), "low=4 is above high=3"),
        (lambda: log_range(1, 3, 0), "count=0"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()
