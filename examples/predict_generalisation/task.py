"""The task: from the weights of a CNN to its test accuracy; and the ways to go about it.

Legend of shapes: N networks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor, nn

from examples.common import Trial, parameter_count
from examples.common.runs import check_method
from examples.common.training import Batch, Epoch, apply
from examples.make_cnn_zoo import Zoo
from examples.predict_generalisation.statistics import StatNN, statistics

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


class Prediction:
    """One method with one seed: an `Experiment`. Boosted trees have no epochs.

    Args:
        trial: with the splits of `batches`.
    """

    def __init__(self, trial: Trial) -> None:
        check_method(trial.method, METHODS)
        self.trial = trial
        self.model: nn.Module | HistGradientBoostingRegressor
        if trial.method == TREES:
            self.model = HistGradientBoostingRegressor(random_state=trial.seed)
        elif trial.method == STATNN:
            torch.manual_seed(trial.seed)
            self.model = StatNN(trial.splits["train"].tensors, trial.size.width)
        else:
            self.model = trial.make_model(1)

    def epochs(self) -> Iterator[Epoch]:
        if isinstance(self.model, HistGradientBoostingRegressor):
            examples = self.trial.splits["train"]
            self.model.fit(statistics(examples.tensors).numpy(), examples.target.numpy())
            return
        yield from self.trial.train(self.model, loss, closeness)

    def found(self) -> dict[str, object]:
        """Kendall's tau on the test split, what was predicted there, and how many parameters the model has."""
        test = self.trial.splits["test"]
        if isinstance(self.model, HistGradientBoostingRegressor):
            predicted, parameters = torch.from_numpy(self.model.predict(statistics(test.tensors).numpy())), None
        else:
            predicted, parameters = apply(self.model, test, predictions), parameter_count(self.model)
        return {"test": tau(predicted, test.target), "predicted": predicted.tolist(), "parameters": parameters}
