"""Tables and what is fitted to them, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.linear_model import LogisticRegression as Reference

from tasks import TABLES, LogisticRegression, Quadratic, Tabular
from tasks.data import SPLITS
from tasks.logistic_regression import minimise
from tasks.tables import load_table, split_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("diabetes", (442, 10), None),
        ("friedman", (4000, 10), None),
        ("iris", (150, 4), 3),
        ("wine", (178, 13), 3),
        ("breast_cancer", (569, 30), 2),
        ("digits", (1797, 64), 10),
    ],
)
def test_tables_are_standardised_by_their_train_split(name: str, shape: tuple[int, int], classes: int | None) -> None:
    table = load_table(name, CPU, torch.float64)
    assert table.classes == classes
    assert (sum(len(x) for x in table.inputs.values()), table.inputs["train"].shape[1]) == shape
    columns = [table.inputs["train"]] + ([] if classes else [table.targets["train"]])
    for column in columns:
        torch.testing.assert_close(column.mean(0), torch.zeros(column.shape[1]).double(), atol=1e-9, rtol=0)
        variance = column.var(0, correction=0)
        assert ((variance - 1).abs() < 1e-9).logical_or(variance == 0).all()
    for split in SPLITS:
        assert table.inputs[split].abs().max() < 50  # no column is divided by next to nothing
        assert table.targets[split].shape == ((len(table.inputs[split]),) if classes else (len(table.inputs[split]), 1))
    assert set(TABLES) >= {name}


def test_rows_keep_their_targets() -> None:
    inputs, targets = sklearn.datasets.load_wine(return_X_y=True)
    table = load_table("wine", CPU, torch.float64)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    together = torch.cat([torch.cat([table.inputs[s], table.targets[s][:, None]], 1) for s in SPLITS])
    train = split_rows(178)["train"]
    x = (x - x[train].mean(0)) / x[train].std(0, correction=0)
    expected = torch.cat([x, y[:, None]], 1)
    np.testing.assert_allclose(sorted(together.tolist()), sorted(expected.tolist()), atol=1e-12)


def test_regression_and_classification() -> None:
    for name, outputs in (("diabetes", 1), ("wine", 3)):
        task = Tabular(name, hidden=(5,)).task
        assert task.weight_space.shapes["2.weight"] == (outputs, 5)
        params = task.init(torch.Generator().manual_seed(0))
        x, y = task.evaluation_batch("test")
        out = torch.relu(x @ params["0.weight"].T + params["0.bias"]) @ params["2.weight"].T + params["2.bias"]
        expected = (out - y).square().mean() if outputs == 1 else -out.log_softmax(1)[range(len(y)), y].mean()
        torch.testing.assert_close(task.loss(params, (x, y)), expected)


# --- the optimum of logistic regression ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "l2"), [("wine", 1e-2), ("iris", 1e-1), ("breast_cancer", 1e-3), ("digits", 1e-2)])
def test_the_gradient_vanishes_at_the_optimum(name: str, l2: float) -> None:
    task = LogisticRegression(name, l2=l2, dtype="float64").task
    assert task.optimum is not None
    batch = task.evaluation_batch("train")
    gradient, loss = torch.func.grad_and_value(task.loss)(dict(task.optimum), batch)
    assert max(g.abs().max() for g in gradient.values()) < 1e-10
    random = torch.Generator().manual_seed(0)
    for _ in range(5):  # and it is a minimum
        near = {k: w + 1e-3 * torch.randn(w.shape, generator=random).double() for k, w in task.optimum.items()}
        assert task.loss(near, batch) > loss


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_optimum_is_scikit_learns(l2: float) -> None:
    x, y = (part.numpy() for part in LogisticRegression("wine", dtype="float64").task.evaluation_batch("train"))
    bias = np.ones((len(x), 1))  # scikit-learn does not penalise its own
    reference = Reference(C=1 / (l2 * len(x)), fit_intercept=False, tol=1e-14, solver="newton-cholesky")
    reference.fit(np.hstack([x, bias]), y)
    found = minimise(torch.from_numpy(x), torch.from_numpy(y), 3, l2)
    np.testing.assert_allclose(found["weight"], reference.coef_[:, :-1], atol=1e-6)
    np.testing.assert_allclose(found["bias"], reference.coef_[:, -1], atol=1e-6)


def test_optima_come_in_the_dtype_of_the_task() -> None:
    task = LogisticRegression("iris").task
    assert task.optimum is not None and {w.dtype for w in task.optimum.values()} == {torch.float32}
    assert task.loss(task.optimum, task.evaluation_batch("train")) < math.log(3)
    quadratic = Quadratic().task
    assert quadratic.optimum is not None
    assert quadratic.loss(quadratic.optimum, quadratic.evaluation_batch("train")) == 0
    assert Tabular().task.optimum is None
