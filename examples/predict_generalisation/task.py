"""The task: from the weights of a CNN to its test accuracy; and the ways to go about it.

Legend of shapes: N networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor, nn

from examples.common import Architecture, Recipe, make_model, train
from examples.common.training import EVALUATED, Batch, Epoch
from examples.make_cnn_zoo import Zoo
from examples.predict_generalisation.statistics import StatNN, statistics
from lopt.errors import unknown
from lopt.weight_space import WeightSpace

STATNN, TREES = "statnn", "statnn_trees"
# method -> what a table calls it
TITLES = {
    "hnp": "HNP",
    "np": "NP",
    STATNN: "StatNN, an MLP",
    TREES: "StatNN, boosted trees",
    "mlp": "MLP on raw weights",
}
METHODS = tuple(TITLES)
# Kendall's tau; NFN (arXiv 2302.14040), Table 2, on the zoo of arXiv 2002.11448 of grey CIFAR-10.
PUBLISHED = {"NFN, HNP": 0.934, "NFN, NP": 0.922, "NFN, StatNN": 0.915}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy between accuracies, as in NFN."""
    return F.binary_cross_entropy_with_logits(model(batch.tensors).squeeze(1), batch.target)


def closeness(model: nn.Module, batch: Batch) -> Tensor:
    """Minus the squared error of each network: [N]."""
    return -(predictions(model, batch) - batch.target).square()


def predictions(model: nn.Module, batch: Batch) -> Tensor:
    """Accuracies in 0 .. 1: [N]."""
    return model(batch.tensors).squeeze(1).sigmoid()


def batches(zoo: Zoo) -> dict[str, Batch]:
    return {split: Batch(networks.tensors, networks.accuracy) for split, networks in zoo.splits.items()}


def tau(predicted: Tensor, actual: Tensor) -> float:
    """Kendall's rank correlation; 0 where all predictions are the same.

    >>> tau(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.1, 0.2, 0.4, 0.3]))
    0.6666666666666669
    """
    found = float(np.asarray(kendalltau(predicted.numpy(), actual.numpy()))[0])
    return 0.0 if np.isnan(found) else found


def check_method(method: str) -> None:
    """Raises InvalidInput, with the near matches, unless there is such a method."""
    if method not in METHODS:
        raise unknown("model", method, METHODS)


class Prediction:
    """One method with one seed: an `Experiment`. Boosted trees have no epochs.

    Args:
        splits: those of `batches`.
    """

    def __init__(
        self,
        method: str,
        space: WeightSpace,
        splits: Mapping[str, Batch],
        size: Architecture,
        recipe: Recipe,
        seed: int,
    ) -> None:
        check_method(method)
        self.splits, self.recipe, self.seed = splits, recipe, seed
        torch.manual_seed(seed)
        tensors = splits["train"].tensors
        self.model: nn.Module | HistGradientBoostingRegressor
        if method == TREES:
            self.model = HistGradientBoostingRegressor(random_state=seed)
        elif method == STATNN:
            self.model = StatNN(tensors, size.width)
        else:
            self.model = make_model(method, space, tensors, 1, size)

    def epochs(self) -> Iterator[Epoch]:
        examples, generator = self.splits["train"], torch.Generator().manual_seed(self.seed)
        if isinstance(self.model, HistGradientBoostingRegressor):
            self.model.fit(statistics(examples.tensors).numpy(), examples.target.numpy())
            return
        torch.manual_seed(self.seed)
        yield from train(self.model, examples, self.splits["validation"], loss, closeness, self.recipe, generator)

    def found(self) -> dict[str, object]:
        """Kendall's tau on the test split, what was predicted there, and how many parameters the model has."""
        test = self.splits["test"]
        if isinstance(self.model, HistGradientBoostingRegressor):
            predicted, parameters = torch.from_numpy(self.model.predict(statistics(test.tensors).numpy())), None
        else:
            self.model.eval()
            with torch.no_grad():
                rows = [slice(start, start + EVALUATED) for start in range(0, len(test), EVALUATED)]
                predicted = torch.cat([predictions(self.model, test.rows(some)) for some in rows])
            parameters = sum(p.numel() for p in self.model.parameters())
        return {"test": tau(predicted, test.target), "predicted": predicted.tolist(), "parameters": parameters}
