"""Masks of networks: the weights with the highest scores stay, and all biases.

`keep_highest` compares all weights of a network with each other, `keep_in_each` those of a tensor.

Legend of shapes: N networks, *S the shape of a weight, W the weights of a network in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def weights_of(networks: Tensors) -> list[str]:
    """The names of what a mask is for: everything with more than one axis besides N."""
    return [name for name, x in networks.items() if x.dim() > 2]


def in_a_row(tensors: Tensors, names: Iterable[str]) -> Tensor:
    """[N, *S] of each name -> [N, W]."""
    return torch.cat([tensors[name].flatten(1) for name in names], 1)


def unrowed(row: Tensor, like: Tensors, names: Iterable[str]) -> dict[str, Tensor]:
    """The inverse of `in_a_row`."""
    shapes = {name: like[name].shape[1:] for name in names}
    parts = row.split([shape.numel() for shape in shapes.values()], 1)
    return {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """1 for the highest 1 - `sparsity` of the scores of each network, at least one of them, and 0 for the others.

    Shapes:
        scores: [N, W]; the result likewise.

    >>> keep_highest(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 0.5)
    tensor([[0., 1., 0., 1.]])
    """
    kept = max(1, round((1 - sparsity) * scores.shape[1]))
    return torch.zeros_like(scores).scatter_(1, scores.topk(kept, 1).indices, 1.0)


def keep_in_each(scores: Tensors, counts: Tensors) -> dict[str, Tensor]:
    """1 for the highest scores of each tensor of each network, as many as `counts` says, and 0 for the others.

    Shapes:
        scores: name -> [N, *S]; counts: name -> [N]. The result: name -> [N, *S].

    >>> scores = {"a": torch.tensor([[[0.1, 0.4]], [[0.2, 0.3]]])}
    >>> keep_in_each(scores, {"a": torch.tensor([1, 2])})["a"].tolist()
    [[[0.0, 1.0]], [[1.0, 1.0]]]
    """
    found = {}
    for name, x in scores.items():
        ranks = x.flatten(1).argsort(1, descending=True).argsort(1)
        found[name] = (ranks < counts[name].unsqueeze(1)).to(x).view_as(x)
    return found


def shares(probabilities: Tensors, sparsity: float) -> dict[str, Tensor]:
    """How many weights of each tensor stay: 1 - `sparsity` of all, each tensor's part as its probabilities say.

    Shapes:
        probabilities: name -> [N, *S]. The result: name -> [N], which adds up to the share of all but for rounding.

    >>> shares({"a": torch.full((1, 4, 5), 0.2), "b": torch.full((1, 4, 5), 0.6)}, 0.9)
    {'a': tensor([1]), 'b': tensor([3])}
    """
    kept = (1 - sparsity) * sum(x[0].numel() for x in probabilities.values())
    sums = {name: x.flatten(1).sum(1) for name, x in probabilities.items()}
    total = torch.stack(list(sums.values())).sum(0)
    return {name: (kept * part / total).round().long().clamp_min(1) for name, part in sums.items()}


def shuffled_within(masks: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
    """Every tensor of every network with as many ones as before, in random places.

    >>> shuffled_within({"a": torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])}, torch.Generator())["a"].sum()
    tensor(3.)
    """
    found = {}
    for name, mask in masks.items():
        flat = mask.flatten(1)
        order = torch.rand(flat.shape, generator=generator).argsort(1)
        found[name] = flat.gather(1, order).view_as(mask)
    return found


def overlap(masks: Tensor, others: Tensor) -> Tensor:
    """The share of each mask's ones that stand in the other one too: [N, W] twice -> [N].

    >>> overlap(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
    tensor([0.5000])
    """
    return (masks * others).sum(1) / masks.sum(1)
