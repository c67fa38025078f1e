"""A small version of winning tickets: MLPs 64-32-10 on digits, of which 5 % of the weights stay."""

import pytest
import torch

from examples.common import Architecture, permute_each, random_permutations
from examples.make_classifiers.__main__ import main as make
from examples.winning_tickets.__main__ import main
from examples.winning_tickets.masks import (
    in_a_row,
    keep_highest,
    keep_in_each,
    overlap,
    shares,
    shuffled_within,
    unrowed,
    weights_of,
)
from examples.winning_tickets.task import LEARNED, TITLES, make_scorer
from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tests.examples.common import configured

SPACE = WeightSpace.linear_stack({"0.weight": (6, 4), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)})


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    changed = {"data": "digits", "folder": str(folder), "hidden": [32], "threads": 1, "lr": 0.01, "steps": 100}
    changed |= {"train": 48, "validation": 10, "test": 10, "shard": 48}
    assert make(configured("make_classifiers", changed)) == 0
    return folder


def run(networks, out, **changed):
    changed = {"data": "digits", "folder": str(networks), "out": str(out), "threads": 1, "seeds": 1, **changed}
    changed["model"] = {"channels": 8, "layers": 3, "code": 4}
    changed["recipe"] = {"epochs": 30, "batch_size": 4, "lr": 0.02, **changed.get("recipe", {})}
    return main(configured("winning_tickets", changed))


def rows(out):
    lines = [line.split("|") for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")]
    return {line[1].strip(): [float(cell.split("±")[0]) for cell in line[2:-1]] for line in lines[2:]}


def test_predicted_masks_beat_random_ones(networks, tmp_path):
    assert run(networks, tmp_path, methods=["np", "random", "magnitude", "ticket", "dense"]) == 0
    found = {method: rows(tmp_path)[TITLES[method]] for method in ("np", "random", "magnitude", "ticket", "dense")}
    accuracy, loss, share = ({method: values[k] for method, values in found.items()} for k in range(3))
    assert accuracy["np"] > max(accuracy["random"], accuracy["magnitude"]) + 5
    assert loss["np"] < 0.95 * loss["random"]
    assert accuracy["dense"] > accuracy["ticket"] > accuracy["np"]
    assert share["dense"] == share["ticket"] == 100
    assert 3 < share["random"] < 7 and share["np"] > 1.3 * share["magnitude"] > 2 * share["random"]
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


def test_the_other_methods_run_over_several_seeds(networks, tmp_path):
    methods = ["pt", "shuffled"]  # the others ran above
    assert run(networks, tmp_path, methods=methods, seeds=2, train=8, test=4, recipe={"epochs": 1}) == 0
    text = (tmp_path / "table.md").read_text()
    assert len(rows(tmp_path)) == 2 and text.count("±") == 6
    assert "8 train, 10 validation, 4 test networks, 1 epochs" in text


@pytest.mark.parametrize("name", LEARNED)
def test_a_scorer_is_equivariant_and_knows_the_inputs_apart(name):
    torch.manual_seed(0)
    tensors = {name: torch.randn(5, *shape) for name, shape in SPACE.shapes.items()}
    model = make_scorer(name, SPACE, tensors, Architecture(channels=6, layers=2, code=3))
    permutations = random_permutations(SPACE, 5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        after = permute_each(SPACE, model(tensors), permutations)
        before = model(permute_each(SPACE, tensors, permutations))
        other = model({key: x.flip(-1) if key == "0.weight" else x for key, x in tensors.items()})
    for key, x in after.items():
        torch.testing.assert_close(x, before[key], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other["0.weight"].flip(-1), model(tensors)["0.weight"], atol=1e-2)


def test_masks_keep_the_share_and_go_back_to_their_places():
    generator = torch.Generator().manual_seed(0)
    networks = {name: torch.randn(4, *shape, generator=generator) for name, shape in SPACE.shapes.items()}
    names = weights_of(networks)
    assert names == ["0.weight", "2.weight"]
    row = in_a_row(networks, names)
    assert all(unrowed(row, networks, names)[name].equal(networks[name]) for name in names)

    mask = keep_highest(row, 0.8)
    assert (mask.sum(1) == round(0.2 * 42)).all() and set(mask.unique().tolist()) == {0, 1}
    for scores, kept in zip(row, mask, strict=True):
        assert scores[kept == 1].min() > scores[kept == 0].max()
    assert keep_highest(row, 0.9999).sum(1).tolist() == [1] * 4
    masks = unrowed(mask, networks, names)
    weights, counts = {name: networks[name] for name in names}, {"0.weight": 3, "2.weight": 17}
    each = keep_in_each(weights, {name: torch.full((4,), count) for name, count in counts.items()})
    for name, kept in each.items():
        assert (kept.sum((1, 2)) == counts[name]).all()
        for scores, ones in zip(weights[name], kept, strict=True):
            assert scores[ones == 1].min() > scores[ones == 0].max()
    found = shares({"0.weight": torch.full((2, 6, 4), 0.3), "2.weight": torch.full((2, 3, 6), 0.6)}, 0.5)
    assert {name: count.tolist() for name, count in found.items()} == {
        "0.weight": [8, 8],
        "2.weight": [13, 13],
    }  # of 21
    shuffled = shuffled_within(masks, generator)
    for name in names:
        assert shuffled[name].sum((1, 2)).equal(masks[name].sum((1, 2)))
    assert not all(shuffled[name].equal(masks[name]) for name in names)
    torch.testing.assert_close(overlap(mask, mask), torch.ones(4))
    torch.testing.assert_close(overlap(mask, 1 - mask), torch.zeros(4))


def test_bad_settings_are_errors(networks, tmp_path):
    with pytest.raises(InvalidInput, match="unknown method 'randon'; did you mean 'random'"):
        run(networks, tmp_path, methods=["randon"])
    with pytest.raises(InvalidInput, match=r"sparsity=95: give the share"):
        run(networks, tmp_path, sparsity=95)
    with pytest.raises(InvalidInput, match=r"no set of networks.*\n  python -m examples.make_classifiers"):
        run(tmp_path / "none", tmp_path)
    with pytest.raises(InvalidInput, match=r"of the kind 'mlp', wanted 'cnn'.*\n.*network=cnn"):
        run(networks, tmp_path, network="cnn")
