"""A small version of INR classification: digits of 8 x 8 pixels, SIRENs with one hidden layer."""

import pytest
import torch

from examples.classify_inrs.__main__ import main
from examples.classify_inrs.task import METHODS, batches
from examples.common.methods import ALIGNED, prepared
from examples.make_inrs import load_inrs
from lopt.errors import InvalidInput
from tests.examples.common import column, configured, small_inrs

SMALL = {"channels": 12, "layers": 2, "code": 4, "heads": 2, "pool": "max", "head": 32, "width": 64}


@pytest.fixture(scope="module")
def inrs(tmp_path_factory):
    return small_inrs(tmp_path_factory.mktemp("inrs"), train=400, validation=100, test=200)


def run(inrs, out, **changed):
    changed = {"data": "digits", "folder": str(inrs), "out": str(out), "threads": 1, "model": SMALL, **changed}
    changed["recipe"] = {"epochs": 12, "batch_size": 32, **changed.get("recipe", {})}
    return main(configured("classify_inrs", changed))


def test_the_equivariant_model_beats_the_mlp_on_raw_weights(inrs, tmp_path, capsys):
    assert run(inrs, tmp_path, models=["hnp", "mlp"], seeds=1) == 0
    found = column((tmp_path / "table.md").read_text())
    assert found["HNP"] > found["MLP"] + 10
    assert found["HNP"] > 30  # chance is 10
    assert (tmp_path / "accuracy.png").stat().st_size > 1000

    # What is done is not done again; with other settings it is.
    before = (tmp_path / "hnp-0.json").stat().st_mtime_ns
    assert run(inrs, tmp_path, models=["hnp", "mlp"], seeds=1) == 0
    assert (tmp_path / "hnp-0.json").stat().st_mtime_ns == before
    assert column((tmp_path / "table.md").read_text()) == found
    assert run(inrs, tmp_path, models=["mlp"], seeds=1, recipe={"epochs": 1}) == 0
    assert column((tmp_path / "table.md").read_text())["MLP"] != found["MLP"]


def test_every_method_runs_over_several_seeds(inrs, tmp_path):
    assert run(inrs, tmp_path, models=list(METHODS), seeds=2, train=40, recipe={"epochs": 1}) == 0
    text = (tmp_path / "table.md").read_text()
    assert len(column(text)) == len(METHODS)
    assert text.count("±") == len(METHODS)
    assert "40 train, 100 validation, 200 test INRs, 1 epochs" in text


def test_alignment_brings_the_networks_closer_to_the_first(inrs):
    found = load_inrs(inrs, "digits", {"train": 50})
    plain = batches(found)
    near = prepared(ALIGNED, found.space, plain)
    first = plain["train"].tensors["0.weight"][:1]
    distances = [(splits["train"].tensors["0.weight"] - first).square().mean() for splits in (plain, near)]
    assert distances[1] < 0.5 * distances[0]
    assert near["train"].target.equal(plain["train"].target)
    for name, x in near["test"].tensors.items():
        torch.testing.assert_close(x.sort(1).values.sum(), plain["test"].tensors[name].sort(1).values.sum())
    assert ALIGNED in METHODS


def test_bad_settings_are_errors(inrs, tmp_path):
    with pytest.raises(InvalidInput, match="unknown model 'nfp'"):
        run(inrs, tmp_path, models=["nfp"])
    with pytest.raises(InvalidInput, match="seeds=0"):
        run(inrs, tmp_path, seeds=0)
    with pytest.raises(InvalidInput, match="python -m examples.make_inrs"):
        run(tmp_path / "none", tmp_path)
