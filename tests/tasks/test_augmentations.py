"""What each augmentation changes, and that it changes nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import grad, grad_and_value

from lopt.errors import InvalidInput
from tasks import (
    FewExamples,
    GradientNoise,
    ImageCNN,
    ImageMLP,
    InputPermutation,
    LabelNoise,
    LogisticRegression,
    LossScaling,
    ParameterScaling,
    Quadratic,
    TaskFamily,
    TransformerLanguageModel,
    VariationalAutoencoder,
)
from tasks.augmentations.gradient_noise import TABLE_SIZE
from tasks.augmentations.wrapper import log_uniform
from tasks.data import SPLITS

MLP = ImageMLP(hidden=(6,), batch_size=16, dtype="float64")
PLAIN: Any = MLP.tasks[0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(family: TaskFamily, seed: int = 0) -> Any:
    return family.sample(seeded(seed))


def test_log_uniform() -> None:
    generator = seeded(0)
    drawn = torch.tensor([math.log10(log_uniform(0.01, 100.0, generator)) for _ in range(2000)])
    assert drawn.abs().max() <= 2 and abs(drawn.mean()) < 0.1 and abs(drawn.std() - 4 / 12**0.5) < 0.05
    assert log_uniform(3.0, 3.0, generator) == 3.0


# --- data -------------------------------------------------------------------------------------------------------------


def test_few_examples_are_a_part_of_the_table() -> None:
    """Other parts for other tasks; what a task is trained on is within its part, what it is tested on is as before."""
    first, second = (sample(FewExamples(MLP, 60, 60), seed) for seed in (0, 1))
    for task in (first, second):
        assert task.sizes == (60, 16)
        rows = task.rows["train"]
        drawn = torch.cat([task.draw("train", seeded(k)) for k in range(60)])
        assert set(drawn.tolist()) == set(rows) < set(PLAIN.rows["train"])
        assert len(task.evaluation_batch("train")[0]) == 60
        for split in ("validation", "test"):
            assert torch.equal(task.evaluation_batch(split)[0], PLAIN.evaluation_batch(split)[0])
    assert first.rows != second.rows
    assert first.population == second.population == PLAIN.population
    assert PLAIN.sizes.dataset > 500  # the task that it was made of is as it was
    sizes = [sample(FewExamples(MLP, 10, 1000), seed).sizes.dataset for seed in range(200)]
    assert min(sizes) < 20 and max(sizes) > 500 and 60 < sorted(sizes)[100] < 170
    assert sample(FewExamples(MLP, 1e6, 1e6)).sizes == PLAIN.sizes
    assert sample(FewExamples(LogisticRegression("wine"), 20, 20)).optimum is None


def test_few_examples_of_a_text_are_stretches_beside_one_another() -> None:
    family = TransformerLanguageModel(blocks=1, width=8, heads=2, length=6, batch_size=8, evaluation_size=64)
    task: Any = sample(FewExamples(family, 40, 40))
    assert task.sizes == (40, 8)
    assert len(task.rows["train"]) == 240
    measured = task.evaluation["train"]
    assert len(measured) == 40 and measured.step == 6


@pytest.mark.parametrize("family", [Quadratic(), LossScaling(MLP)])
def test_few_examples_of_what_is_no_table(family: TaskFamily) -> None:
    with pytest.raises(InvalidInput, match=r"wants tasks on a table.*put other augmentations around FewExamples"):
        sample(FewExamples(family))


# --- scales ----------------------------------------------------------------------------------------------------------


def test_scaled_parameters_are_the_same_network_in_other_units() -> None:
    task = sample(ParameterScaling(MLP, 0.01, 100.0), 0)
    plain = PLAIN
    scales = task.values
    assert len({float(s) for s in scales.values()}) == 4
    w, scaled = plain.init(seeded(1)), task.init(seeded(1))
    for name, s in scales.items():
        torch.testing.assert_close(s * scaled[name], w[name])
    drawn, inner = task.draw("train", seeded(2)), plain.draw("train", seeded(2))
    slopes, loss = grad_and_value(task.loss)(scaled, task.gather("train", drawn))
    expected, plain_loss = grad_and_value(plain.loss)(w, plain.gather("train", inner))
    torch.testing.assert_close(loss, plain_loss)
    for name, s in scales.items():
        torch.testing.assert_close(slopes[name], s * expected[name])


def test_a_global_scale_is_one_in_all() -> None:
    values = [sample(ParameterScaling(MLP, 0.1, 10, level="global"), k).values for k in range(3)]
    assert all(len({float(s) for s in v.values()}) == 1 for v in values)
    assert len({float(v["0.weight"]) for v in values}) == 3


def test_a_scaled_loss() -> None:
    task, plain = sample(LossScaling(MLP, 0.1, 10), 3), PLAIN
    factor = float(task.values)
    w = task.init(seeded(1))
    for split in SPLITS:
        expected = factor * plain.loss(w, plain.evaluation_batch(split))
        torch.testing.assert_close(task.loss(w, task.evaluation_batch(split)), expected)
    assert factor != 1


@pytest.mark.parametrize("wrapper", [ParameterScaling, LossScaling, GradientNoise, LabelNoise])
def test_known_optima_stay_known(wrapper) -> None:
    task = sample(wrapper(LogisticRegression("iris", dtype="float64")), 0)
    slopes = grad(task.loss)(dict(task.optimum), task.evaluation_batch("train"))
    assert max(g.abs().max() for g in slopes.values()) < 1e-8
    unknown = sample(InputPermutation(LogisticRegression("iris")), 0)
    assert unknown.optimum is None  # it would have to be permuted


# --- noise on gradients ----------------------------------------------------------------------------------------------


def test_gradient_noise_leaves_the_loss_and_moves_the_gradient() -> None:
    task, plain = sample(GradientNoise(MLP, 0.5, 0.5), 0), PLAIN
    w, generator = task.init(seeded(1)), seeded(2)
    noise: dict[str, list] = {name: [] for name in w}
    for _ in range(200):
        drawn = task.draw("train", generator)
        slopes, loss = grad_and_value(task.loss)(w, task.gather("train", drawn))
        expected, plain_loss = grad_and_value(plain.loss)(w, plain.gather("train", drawn.inner))
        assert loss == plain_loss
        for name, g in slopes.items():
            noise[name].append((g - expected[name]).flatten())
    typical = grad(plain.loss)(plain.init(seeded(5)), plain.batch("train", seeded(6)))
    for name, parts in noise.items():
        x = torch.stack(parts)
        std = float(task.std[name])
        assert abs(x.std() / std - 1) < 0.1 and abs(x.mean()) < 5 * std / x.numel() ** 0.5
        ratio = std / typical[name].square().mean().sqrt()
        assert 0.5 / 3 < ratio < 0.5 * 3  # relative to the gradient at initial weights
        assert len({tuple(row.tolist()) for row in x}) == 200  # new in every batch


def test_gradient_noise_is_in_training_alone() -> None:
    task, plain = sample(GradientNoise(MLP), 0), PLAIN
    w = task.init(seeded(1))
    for split in ("validation", "test"):
        drawn = task.draw(split, seeded(2))
        slopes = grad(task.loss)(w, task.gather(split, drawn))
        expected = grad(plain.loss)(w, plain.gather(split, drawn.inner))
        assert all(torch.equal(slopes[name], expected[name]) for name in w)
    slopes = grad(task.loss)(w, task.evaluation_batch("train"))
    expected = grad(plain.loss)(w, plain.evaluation_batch("train"))
    assert all(torch.equal(slopes[name], expected[name]) for name in w)


def test_gradient_noise_reads_past_the_end_of_its_table() -> None:
    task = sample(GradientNoise(Quadratic(dimensions=4), 1.0, 1.0), 0)
    w, drawn = task.init(seeded(0)), task.draw("train", seeded(1))
    ends = drawn._replace(place=torch.tensor(TABLE_SIZE - 2))
    difference = grad(task.loss)(w, ends)["w"] - grad(task.inner.loss)(w, drawn.inner)["w"]
    table = task.table
    torch.testing.assert_close(difference, task.std["w"] * torch.cat([table[-2:], table[:2]]))


# --- noise on labels -------------------------------------------------------------------------------------------------


def test_label_noise_replaces_its_share_by_the_labels_of_others() -> None:
    family = ImageMLP(hidden=(), batch_size=4000)
    task, plain = sample(LabelNoise(family, 0.3, 0.3), 0), family.tasks[0]
    drawn = task.draw("train", seeded(1))
    inputs, labels = task.gather("train", drawn)
    clean_inputs, clean = plain.gather("train", drawn.inner)
    assert torch.equal(inputs, clean_inputs)
    assert abs(drawn.wrong.double().mean() - 0.3) < 0.03
    assert torch.equal(labels[~drawn.wrong], clean[~drawn.wrong])
    # A wrong label is right by chance a tenth of the time.
    assert abs((labels != clean).double().mean() - 0.3 * 0.9) < 0.03
    for split in ("validation", "test"):
        drawn = task.draw(split, seeded(1))
        assert torch.equal(task.gather(split, drawn)[1], plain.gather(split, drawn.inner)[1])
    for split in SPLITS:
        assert torch.equal(task.evaluation_batch(split)[1], plain.evaluation_batch(split)[1])


def test_label_noise_replaces_characters_one_by_one() -> None:
    family = TransformerLanguageModel(width=8, batch_size=100)
    task = sample(LabelNoise(family, 0.5, 0.5), 0)
    wrong = task.draw("train", seeded(1)).wrong
    assert wrong.shape == (100, 8) and wrong.any(1).all() and not wrong.all(1).any()


# --- permuted inputs -------------------------------------------------------------------------------------------------


def test_columns_are_permuted_in_one_way_a_task() -> None:
    family = ImageMLP(hidden=(), batch_size=16)
    plain, orders = family.tasks[0], set()
    for seed in range(4):
        task = sample(InputPermutation(family), seed)
        found = []
        for split in SPLITS:
            inputs, labels = task.evaluation_batch(split)
            clean, clean_labels = plain.evaluation_batch(split)
            assert torch.equal(labels, clean_labels) and not torch.equal(inputs, clean)
            torch.testing.assert_close(inputs.sort(1).values, clean.sort(1).values)
            found.append(inputs[:, :1].eq(clean).all(0).nonzero().flatten().tolist())
            drawn = task.draw(split, seeded(7))
            permuted, original = task.gather(split, drawn)[0], plain.gather(split, drawn.inner)[0]
            torch.testing.assert_close(permuted, original[:, task.table[task.number]])
        orders.add(tuple(task.table[task.number].tolist()))
        assert sorted(task.table[task.number].tolist()) == list(range(64))
        assert set(found[0]) & set(found[1]) & set(found[2])  # the first column is the same one in all splits
    assert len(orders) > 1


def test_pixels_are_permuted_and_channels_stay() -> None:
    task = sample(InputPermutation(ImageCNN(channels=(2,), batch_size=4)))
    images, _ = task.evaluation_batch("test")
    plain, _ = task.inner.evaluation_batch("test")
    torch.testing.assert_close(images.flatten(2), plain.flatten(2)[..., task.table[task.number]])
    assert images.shape == plain.shape and not torch.equal(images, plain)


# --- arguments -------------------------------------------------------------------------------------------------------


def test_what_wants_inputs_and_targets_says_so() -> None:
    with pytest.raises(InvalidInput, match="LabelNoise wants tasks whose batches are inputs and targets.*'image_mlp"):
        sample(LabelNoise(LossScaling(MLP)), 0)
    with pytest.raises(InvalidInput, match="InputPermutation wants"):
        sample(InputPermutation(VariationalAutoencoder()), 0)
    with pytest.raises(InvalidInput, match="are no real numbers"):
        sample(InputPermutation(TransformerLanguageModel()), 0)


@pytest.mark.parametrize("wrapper", [FewExamples, ParameterScaling, LossScaling, GradientNoise, LabelNoise])
def test_ranges_are_checked(wrapper) -> None:
    for low, high in ((0, 1), (-1, 1), (0.5, 0.4), (0.1, float("inf")), (float("nan"), 1), (True, 1)):
        with pytest.raises(InvalidInput, match="low"):
            wrapper(MLP, low, high)
    with pytest.raises(InvalidInput, match="give a task family"):
        wrapper("image_mlp")


def test_other_arguments_are_checked() -> None:
    with pytest.raises(InvalidInput, match="unknown level 'tensors'; did you mean 'tensor'"):
        ParameterScaling(MLP, level="tensors")
    with pytest.raises(InvalidInput, match=r"high=1\.5: a share"):
        LabelNoise(MLP, 0.1, 1.5)
    with pytest.raises(InvalidInput, match=r"low=0\.5: give at least 1 example"):
        FewExamples(MLP, 0.5, 1.5)
    with pytest.raises(InvalidInput, match="count=0"):
        InputPermutation(MLP, 0)
