r"""The task: from the initial weights of a network to the mask that its trained weights have.

    loss = mean over weights of BCE(f(initial weights), mask),        mask = the largest |trained weights|

f is equivariant: when the hidden neurons of a network change places, so does its mask. What counts is how well the
networks do that are trained anew from what a mask leaves of their initialisation.

Legend of shapes: N networks, *S the shape of a parameter, W the weights of a network in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common import Architecture, Trial
from examples.common.models import Channel, Standardise, Unchannel
from examples.common.runs import check_method
from examples.common.training import Batch, Epoch
from examples.make_classifiers import ClassifierSet, Problem, Training, measure, train_all
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
from lopt.errors import unknown
from lopt.functionals import LayerEncoding, Pointwise, PositionEncoding, mlp, presets
from lopt.weight_space import WeightSpace

LEARNED = ("np", "pt")
# method -> what a table calls it
TITLES = {
    "np": "NP",
    "pt": "pointwise network",
    "ticket": "ticket: largest trained weights",
    "shuffled": "random, with the ticket's number in each tensor",
    "random": "random",
    "magnitude": "largest initial weights of each tensor",
    "dense": "no mask",
}
METHODS = tuple(TITLES)


def make_scorer(name: str, space: WeightSpace, tensors: Mapping[str, Tensor], size: Architecture) -> nn.Module:
    """A model from weights [N, *S] to a score for each of them, [N, *S]; all are equivariant.

    Args:
        name: "np", or "pt": every weight by itself, with codes for its tensor, and for its input or output.
        tensors: networks that the statistics of the weights are taken from: the train split.

    >>> space = WeightSpace.linear_stack({"0.weight": (8, 2), "0.bias": (8,), "2.weight": (3, 8), "2.bias": (3,)})
    >>> networks = {name: torch.randn(5, *shape) for name, shape in space.shapes.items()}
    >>> make_scorer("pt", space, networks, Architecture(channels=4))(networks)["2.weight"].shape
    torch.Size([5, 3, 8])
    """
    if name not in LEARNED:
        raise unknown("model", name, LEARNED)
    layer = LayerEncoding(space, 1, how="concatenate", width=size.code)
    position = PositionEncoding(space, 1 + size.code, how="concatenate", width=size.code)
    widths = [1 + 2 * size.code, *[size.channels] * (size.layers - 1), 1]
    network = presets.stack("np", space, widths) if name == "np" else Pointwise(mlp(widths))
    return nn.Sequential(Standardise(tensors), Channel(), layer, position, network, Unchannel())


def batches(found: ClassifierSet, space: WeightSpace, sparsity: float) -> dict[str, Batch]:
    """The splits as initial weights, in the order of the space, and masks [N, W] of the largest trained weights."""
    splits = {}
    for split, networks in found.splits.items():
        initial = {name: networks.initial[name] for name in space}
        target = keep_highest(in_a_row(networks.final, weights_of(initial)).abs(), sparsity)
        splits[split] = Batch(initial, target)
    return splits


class Ticket:
    """One method with one seed: an `Experiment`. Those that do not learn have no epochs.

    Args:
        trial: with the splits of `batches`.
        training: how networks are trained from what a mask leaves of them.
        tested: how many test images they are measured on.
    """

    def __init__(self, trial: Trial, problem: Problem, training: Training, sparsity: float, tested: int) -> None:
        check_method(trial.method, METHODS, "method")
        self.trial, self.problem, self.training, self.sparsity, self.tested = trial, problem, training, sparsity, tested
        networks = trial.splits["train"].tensors
        self.names = weights_of(networks)
        torch.manual_seed(trial.seed)
        learned = trial.method in LEARNED
        self.model = make_scorer(trial.method, trial.space, networks, trial.size) if learned else None

    def epochs(self) -> Iterator[Epoch]:
        return iter(()) if self.model is None else self.trial.train(self.model, self._loss, self._score)

    def found(self) -> dict[str, Any]:
        """Test accuracy and loss of the networks of the test split trained under their masks, and the overlap."""
        test, seed = self.trial.splits["test"], self.trial.seed
        masks = self.masks(test, torch.Generator().manual_seed(seed))
        order = torch.Generator().manual_seed(seed)  # the same batches for every method
        trained = train_all(self.problem, test.tensors, self.training, order, masks)
        measured = measure(self.problem, trained, "test", self.tested)
        return {
            "test": float(measured.accuracy.mean()),
            "loss": float(measured.loss.mean()),
            "overlap": float(overlap(test.target, in_a_row(masks, self.names)).mean()),
        }

    @torch.no_grad()
    def masks(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Masks for the networks of a batch: weight -> [N, *S].

        How many weights a tensor keeps: for the learned ones in proportion to the sum of the probabilities that they
        give (the highest of all would crowd into the tensors of which most stay, and cut the others off); for random
        and magnitude the same share of each.
        """
        weights = {name: batch.tensors[name] for name in self.names}
        ticket = unrowed(batch.target, batch.tensors, self.names)
        alike = shares({name: torch.ones_like(x) for name, x in weights.items()}, self.sparsity)
        if self.model is not None:
            row = self._logits(self.model.eval(), batch).sigmoid()
            probabilities = unrowed(row, weights, self.names)
            return keep_in_each(probabilities, shares(probabilities, self.sparsity))
        if self.trial.method == "random":
            drawn = {name: torch.rand(x.shape, generator=generator) for name, x in weights.items()}
            return keep_in_each(drawn, alike)
        if self.trial.method == "magnitude":
            return keep_in_each({name: x.abs() for name, x in weights.items()}, alike)
        if self.trial.method == "shuffled":
            return shuffled_within(ticket, generator)
        return ticket if self.trial.method == "ticket" else {name: torch.ones_like(x) for name, x in weights.items()}

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """[N, W]: those of the share that stays, and what the model adds to them."""
        return in_a_row(model(batch.tensors), self.names) + math.log(1 / self.sparsity - 1)

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(self._logits(model, batch), batch.target)

    def _score(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self._logits(model, batch)
        return -F.binary_cross_entropy_with_logits(logits, batch.target, reduction="none").mean(1)
