"""A small version of INR editing: digits of 8 x 8 pixels, SIRENs with one hidden layer."""

import pytest
import torch

from examples.common import Architecture, make_editor, permute_each, random_permutations
from examples.edit_inrs.__main__ import main
from examples.edit_inrs.task import EDITS, contrast, dilation, errors
from examples.make_inrs import load_inrs
from lopt.errors import InvalidInput
from tests.examples.common import column, configured, small_inrs


@pytest.fixture(scope="module")
def inrs(tmp_path_factory):
    return small_inrs(tmp_path_factory.mktemp("inrs"), train=300, validation=60, test=100)


def run(inrs, out, **changed):
    changed = {"data": "digits", "folder": str(inrs), "out": str(out), "threads": 1, "seeds": 1, **changed}
    changed["model"] = {"channels": 12, "layers": 3, "width": 64}
    changed["recipe"] = {"epochs": 8, "batch_size": 20, "lr": 0.005, **changed.get("recipe", {})}
    return main(configured("edit_inrs", changed))


def test_the_equivariant_editor_beats_the_mlp_on_raw_weights(inrs, tmp_path):
    assert run(inrs, tmp_path, models=["hnp", "mlp"]) == 0
    found = column((tmp_path / "table.md").read_text())
    assert found["HNP"] < 0.85 * found["MLP"]
    assert found["HNP"] < 0.6 * found["no edit"]
    assert (tmp_path / "pictures.png").stat().st_size > 1000


def test_all_models_and_the_other_edit_run(inrs, tmp_path):
    changed = {"models": ["np", "hnp", "mlp"], "seeds": 2, "train": 60, "test": 20, "recipe": {"epochs": 1}}
    assert run(inrs, tmp_path, edit="contrast", **changed) == 0
    assert (tmp_path / "table.md").read_text().count("±") == 3


def test_dilation_is_the_brightest_neighbour_and_contrast_keeps_the_range():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 1] = 0.7
    expected = torch.zeros(5, 5)
    expected[1:4, 0:3] = 0.7
    assert dilation(image)[0, 0].equal(expected)
    values = torch.tensor([0.4, 0.6, 0.5, 0.5]).view(1, 1, 2, 2)
    torch.testing.assert_close(contrast(values).flatten(), torch.tensor([0.3, 0.7, 0.5, 0.5]))
    assert contrast(torch.rand(3, 3, 8, 8)).aminmax() == (0, 1)
    torch.testing.assert_close(errors(torch.zeros(1, 1, 2, 2), values), 4 * values.square().mean().view(1))


@pytest.mark.parametrize(("name", "probes"), [("np", 0), ("hnp", 0), ("hnp", 4), ("mlp", 0)])
def test_an_editor_is_equivariant_unless_it_is_the_mlp(inrs, name, probes):
    found = load_inrs(inrs, "digits", {"train": 20})
    tensors = found.splits["train"].tensors
    torch.manual_seed(0)
    size = Architecture(channels=6, layers=2, width=16, probes=probes, frequency=found.config["frequency"])
    model = make_editor(name, found.space, tensors, size)
    permutations = random_permutations(found.space, 20, torch.Generator().manual_seed(0))
    with torch.no_grad():
        after = permute_each(found.space, model(tensors), permutations)
        before = model(permute_each(found.space, tensors, permutations))
    same = all(torch.allclose(after[key], before[key], atol=1e-5) for key in after)
    assert same == (name != "mlp")
    assert any((after[key] - tensors[key]).abs().max() > 1e-2 for key in after)


def test_bad_settings_are_errors(inrs, tmp_path):
    with pytest.raises(InvalidInput, match="unknown edit 'dilatation'; did you mean 'dilation'"):
        run(inrs, tmp_path, edit="dilatation")
    with pytest.raises(InvalidInput, match="unknown model 'nft'"):
        run(inrs, tmp_path, models=["nft"])
    with pytest.raises(InvalidInput, match=r"no set of INRs.*\n  python -m examples.make_inrs"):
        run(tmp_path / "none", tmp_path)
    assert set(EDITS) == {"dilation", "contrast"}
