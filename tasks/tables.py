"""Tables of numbers that come with scikit-learn, or are made from a formula: standardised, and split once.

Legend of shapes: N rows, F columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.arguments import pick
from tasks.data import SPLITS
from tasks.task import Split

SHARES = (0.6, 0.8)  # where validation and test begin
_SPLIT_SEED = 0
_FRIEDMAN_SEED = 1991
_SMALLEST_STD = 1e-6  # a column that varies less in the train split is only centred

Columns = tuple[np.ndarray, np.ndarray]  # (N, F), and (N,): numbers, or classes 0, 1, ...


@dataclass(frozen=True)
class TableData:
    """For every split inputs (N, F) and targets: (N, 1) numbers to predict, or (N,) classes."""

    inputs: dict[Split, Tensor]
    targets: dict[Split, Tensor]
    classes: int | None  # None: a regression


def split_rows(count: int) -> dict[Split, Tensor]:
    """60 % of the rows for training, 20 % for validation, 20 % for testing; the same shuffle at every call."""
    if count < 5:
        raise InvalidInput(f"inputs: {count} rows; give at least 5 for three splits")
    # NumPy promises that the stream of this generator never changes; PyTorch makes no such promise.
    order = torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(count))
    return dict(zip(SPLITS, order.tensor_split([int(share * count) for share in SHARES]), strict=True))


def load_table(name: str, device: torch.device, dtype: torch.dtype) -> TableData:
    """A table of `TABLES`, whose columns, and targets of a regression, have mean 0 and variance 1 in the train split.

    >>> table = load_table("diabetes", torch.device("cpu"), torch.float32)
    >>> table.inputs["train"].shape, table.targets["train"].shape, table.classes
    (torch.Size([265, 10]), torch.Size([265, 1]), None)
    """
    inputs, targets = (torch.from_numpy(np.asarray(column)) for column in pick("table", name, TABLES)())
    classes = None if targets.is_floating_point() else int(targets.max()) + 1
    parts = split_rows(len(targets))
    x = _standardised(inputs.double(), parts["train"])
    y = targets.long() if classes else _standardised(targets[:, None], parts["train"]).to(dtype)
    return TableData(
        {split: x[rows].to(device, dtype) for split, rows in parts.items()},
        {split: y[rows].to(device) for split, rows in parts.items()},
        classes,
    )


def _standardised(columns: Tensor, train: Tensor) -> Tensor:
    std, mean = torch.std_mean(columns[train], dim=0, correction=0)
    return (columns - mean) / std.where(std > _SMALLEST_STD, torch.ones_like(std))


# --- where tables come from ------------------------------------------------------------------------------------------


def _bundled(name: str) -> Callable[[], Columns]:
    def load() -> Columns:
        import sklearn.datasets  # noqa: PLC0415 - an optional package, and slow to import

        return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)

    return load


def _friedman() -> Columns:
    """y = 10 sin(π x₁ x₂) + 20 (x₃ - ½)² + 10 x₄ + 5 x₅ + noise, ten inputs, 4,000 rows (Friedman 1991)."""
    random = np.random.RandomState(_FRIEDMAN_SEED)
    x = random.uniform(size=(4000, 10))
    clean = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x, clean + random.normal(size=4000)


TABLES: dict[str, Callable[[], Columns]] = {
    "diabetes": _bundled("diabetes"),  # regression, 442 rows, 10 columns
    "friedman": _friedman,  # regression, 4,000 rows, 10 columns
    "iris": _bundled("iris"),  # 3 classes, 150 rows, 4 columns
    "wine": _bundled("wine"),  # 3 classes, 178 rows, 13 columns
    "breast_cancer": _bundled("breast_cancer"),  # 2 classes, 569 rows, 30 columns
    "digits": _bundled("digits"),  # 10 classes, 1,797 rows, 64 columns
}
