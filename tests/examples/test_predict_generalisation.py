"""A small version of predicting generalisation: CNNs trained for a few steps on digits."""

import numpy as np
import pytest
import torch

from examples.make_cnn_zoo.__main__ import main as make
from examples.predict_generalisation.__main__ import main
from examples.predict_generalisation.statistics import QUANTILES, StatNN, statistics
from examples.predict_generalisation.task import METHODS, TITLES, tau
from lopt.errors import InvalidInput
from tests.examples.common import column, configured

SMALL = {"channels": 4, "layers": 2, "code": 4, "pool": "mean", "head": 32, "width": 64}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    changed = {"data": "digits", "folder": str(folder), "train": 200, "validation": 50, "test": 100, "tested": 200}
    assert make(configured("make_cnn_zoo", {**changed, "steps": [5, 60], "batch": 16, "lr": [0.001, 0.03]})) == 0
    return folder


def run(zoo, out, **changed):
    changed = {"data": "digits", "folder": str(zoo), "out": str(out), "threads": 1, "model": SMALL, **changed}
    changed["recipe"] = {"epochs": 12, "batch_size": 20, "lr": 0.01, **changed.get("recipe", {})}
    return main(configured("predict_generalisation", changed))


def test_the_functional_and_statistics_beat_the_mlp_on_raw_weights(zoo, tmp_path):
    assert run(zoo, tmp_path, models=["hnp", "statnn_trees", "mlp"], seeds=1) == 0
    found = column((tmp_path / "table.md").read_text())
    assert found["HNP"] > found["MLP on raw weights"] + 0.15
    assert found["HNP"] > 0.3 and found[TITLES["statnn_trees"]] > 0.4
    assert found["NFN, HNP, published, another zoo"] == 0.934
    assert (tmp_path / "predictions.png").stat().st_size > 1000

    # What is done is not done again; with other settings it is.
    before = (tmp_path / "hnp-0.json").stat().st_mtime_ns
    assert run(zoo, tmp_path, models=["hnp", "statnn_trees", "mlp"], seeds=1) == 0
    assert (tmp_path / "hnp-0.json").stat().st_mtime_ns == before
    assert run(zoo, tmp_path, models=["mlp"], seeds=1, train=50) == 0
    assert column((tmp_path / "table.md").read_text())[TITLES["mlp"]] != found[TITLES["mlp"]]


def test_every_method_runs_over_several_seeds(zoo, tmp_path):
    assert run(zoo, tmp_path, models=list(METHODS), seeds=2, train=40, recipe={"epochs": 1}) == 0
    text = (tmp_path / "table.md").read_text()
    assert text.count("±") == len(METHODS)
    assert "40 train, 50 validation, 100 test networks, 1 epochs" in text


def test_statistics_are_those_of_numpy_and_do_not_see_the_order():
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(5, 4, 3, generator=generator), "bias": torch.randn(5, 6, generator=generator)}
    found = statistics(tensors).view(5, 2, 7)
    for k, x in enumerate(tensors.values()):
        flat = x.flatten(1).numpy()
        expected = np.stack([flat.mean(1), flat.var(1), *np.quantile(flat, QUANTILES, axis=1)], 1)
        np.testing.assert_allclose(found[:, k].numpy(), expected, rtol=1e-4, atol=1e-6)
    model = StatNN(tensors, 8)
    torch.testing.assert_close(model({n: x.flip(1) for n, x in tensors.items()}), model(tensors), rtol=1e-4, atol=1e-5)


def test_tau_is_the_share_of_pairs_in_order():
    predicted, actual = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    pairs = [(i, j) for i in range(30) for j in range(i)]
    agree = [float(torch.sign((predicted[i] - predicted[j]) * (actual[i] - actual[j]))) for i, j in pairs]
    assert tau(predicted, actual) == pytest.approx(sum(agree) / len(pairs))
    assert tau(torch.ones(5), actual[:5]) == 0.0


def test_bad_settings_are_errors(zoo, tmp_path):
    with pytest.raises(InvalidInput, match="unknown model 'statn'; did you mean 'statnn'"):
        run(zoo, tmp_path, models=["statn"])
    with pytest.raises(InvalidInput, match="seeds=0"):
        run(zoo, tmp_path, seeds=0)
    with pytest.raises(InvalidInput, match="python -m examples.make_cnn_zoo"):
        run(tmp_path / "none", tmp_path)
