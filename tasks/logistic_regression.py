"""Logistic regression: strictly convex problems on real data whose optimum is known to machine precision.

Legend of shapes: F columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lopt.errors import InvalidInput
from tasks.arguments import check_positive, floating_dtype, pick, usable_device
from tasks.supervised import Supervised
from tasks.tables import TABLES, load_table
from tasks.task import Split, Task, TaskFamily, weight_space_of

GRADIENT_AT_OPTIMUM = 1e-10
_NEWTON_STEPS = 100


class LogisticRegression(TaskFamily):
    r"""Multinomial logistic regression with an L2 penalty on all parameters.

    $$ L(W, b) = \frac{1}{n} \sum_i -\log \mathrm{softmax}(W x_i + b)_{y_i}
       + \frac{\lambda}{2} (\lVert W \rVert^2 + \lVert b \rVert^2) $$

    `task.optimum` holds the one minimiser of L over the whole train split, found by Newton's method in float64 until
    no entry of the gradient is above 1e-10. The penalty counts in validation and test losses, too.

    Args:
        data: a table of classes: "iris", "wine", "breast_cancer" or "digits".
        l2: λ, above 0.
        batch_size: rows of a training batch, drawn with replacement.
        device, dtype: of the table and the weights. A dtype may be given by name.

    Raises:
        InvalidInput: an argument cannot be used.

    >>> task = LogisticRegression("iris", l2=0.1).sample(torch.Generator())
    >>> round(float(task.loss(task.optimum, task.evaluation_batch("train"))), 4)
    0.5492
    """

    name: ClassVar[str] = "logistic_regression"

    def __init__(
        self,
        data: str = "digits",
        l2: float = 1e-2,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        pick("table", data, TABLES)
        if data in REGRESSIONS:
            raise InvalidInput(f"data={data!r} has numbers to predict; give a table of classes: {sorted(CLASSES)}")
        if isinstance(l2, bool) or not isinstance(l2, int | float) or not 0 < l2 < float("inf"):
            raise InvalidInput(f"l2={l2!r}: give a number above 0, so that there is one optimum")
        check_positive("batch_size", batch_size)
        self.data, self.l2, self.batch_size = data, l2, batch_size
        self.device, self.dtype = usable_device(device), floating_dtype(dtype)

    @cached_property
    def task(self) -> Supervised:
        table = load_table(self.data, self.device, self.dtype)
        assert table.classes is not None
        module = nn.Linear(table.inputs["train"].shape[1], table.classes).to(self.dtype)
        rows: dict[Split, range] = {split: range(len(x)) for split, x in table.inputs.items()}
        optimum = minimise(table.inputs["train"].cpu(), table.targets["train"].cpu(), table.classes, self.l2)
        return Supervised(
            f"{self.name}/{self.data}",
            module,
            weight_space_of(module, table.inputs["train"][:2]),
            table.inputs,
            table.targets,
            rows,
            self.batch_size,
            l2=self.l2,
            optimum={name: w.to(self.device, self.dtype) for name, w in optimum.items()},
        )

    def sample(self, generator: torch.Generator) -> Task:
        return self.task


REGRESSIONS = {"diabetes", "friedman"}
CLASSES = set(TABLES) - REGRESSIONS


def minimise(inputs: Tensor, targets: Tensor, classes: int, l2: float) -> dict[str, Tensor]:
    r"""The minimiser of the loss of `LogisticRegression` on inputs (n, F) and targets (n,): Newton with backtracking.

    With x = (input, 1), p = softmax(θ x) and one-hot y, the loss has

    $$ \nabla_\theta = \tfrac1n \textstyle\sum (p - y) x^\top + \lambda \theta, \qquad
       H = \tfrac1n \sum (\mathrm{diag}(p) - p p^\top) \otimes x x^\top + \lambda I $$

    Returns:
        "weight" (K, F) and "bias" (K,), in float64.
    """
    x = F.pad(inputs.double(), (0, 1), value=1.0)  # (n, F + 1)
    y = F.one_hot(targets, classes).double()  # (n, K)
    theta = x.new_zeros(classes, x.shape[1])

    def loss(theta: Tensor) -> Tensor:
        return F.cross_entropy(x @ theta.T, targets) + l2 / 2 * theta.square().sum()

    for _ in range(_NEWTON_STEPS):
        p = (x @ theta.T).softmax(-1)
        slope = (p - y).T @ x / len(x) + l2 * theta
        if slope.abs().max() < GRADIENT_AT_OPTIMUM:
            return {"weight": theta[:, :-1], "bias": theta[:, -1]}
        px = (p[:, :, None] * x[:, None, :]).flatten(1)  # (n, K (F + 1))
        own = torch.block_diag(*torch.einsum("nk,nf,ng->kfg", p, x, x))
        hessian = (own - px.T @ px) / len(x)
        hessian.diagonal().add_(l2)
        step = torch.linalg.solve(hessian, slope.flatten()).reshape(theta.shape)
        theta = _backtrack(loss, theta, slope, step)
    raise InvalidInput("l2: Newton's method does not arrive at the optimum. Give a larger penalty")


def _backtrack(loss: Callable[[Tensor], Tensor], theta: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    """θ - t step with the first t = 1, 1/2, ... of sufficient decrease; t = 1 where rounding hides any decrease."""
    before, expected = loss(theta), (slope * step).sum()
    for halvings in range(30):
        t = 0.5**halvings
        if loss(theta - t * step) <= before - 1e-4 * t * expected:
            return theta - t * step
    return theta - step
