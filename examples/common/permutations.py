r"""Permutations of the neurons of many networks at once, each with its own: augmentation, and alignment.

Legend of shapes: B networks, *S the shape of a parameter, n the neurons of a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lopt.weight_space import WeightSpace

Permutations = Mapping[str, Tensor]  # group -> [B, n]


def random_permutations(space: WeightSpace, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniformly random permutations of all groups for each of `count` networks: group -> [count, n]."""
    return {
        name: torch.rand(count, group.size, generator=generator).argsort(-1) for name, group in space.groups.items()
    }


def permute_each(space: WeightSpace, tensors: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
    """Permutes every network of a batch in its own way: permuted[b, i, j] = tensor[b, p_b(i), q_b(j)].

    Shapes:
        tensors: name -> [B, *S]; the result likewise.

    Raises:
        InvalidInput: a group of the space stands in a product or a concatenation, or depends on another.

    >>> space = WeightSpace({"weight": "h:3, in=1", "bias": "h:3"})
    >>> rows = {"weight": torch.arange(6.0).view(2, 3, 1), "bias": torch.arange(6.0).view(2, 3)}
    >>> permute_each(space, rows, {"h": torch.tensor([[0, 2, 1], [2, 1, 0]])})["bias"]
    tensor([[0., 2., 1.],
            [5., 4., 3.]])
    """
    permuted = {}
    for name, perms in space.axes_to_perm(strict=True).items():
        x = tensors[name]
        for axis, group in enumerate(perms, 1):
            if group is not None:
                x = _reordered(x, permutations[group], axis)
        permuted[name] = x
    return permuted


def align(
    space: WeightSpace, tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], rounds: int = 10
) -> dict[str, Tensor]:
    r"""Permutes each network's neurons so that its weights come close to those of a reference.

    $$ \max_p \sum_i \langle p \cdot W_i, R_i \rangle $$

    by turns: the best permutation of one group, the others held, is a linear assignment; until no group changes, or for
    `rounds` rounds. Weight matching of git re-basin (arXiv 2209.04836, Algorithm 1), with one reference for all.

    Shapes:
        tensors: name -> [B, *S]; reference: name -> [*S]. The result: name -> [B, *S].

    >>> space = WeightSpace({"weight": "h:3, in=1", "bias": "h:3"})
    >>> network = {"weight": torch.tensor([[[3.0], [1.0], [2.0]]]), "bias": torch.tensor([[0.3, 0.1, 0.2]])}
    >>> align(space, network, {"weight": torch.tensor([[1.0], [2.0], [3.0]]), "bias": torch.zeros(3)})["bias"]
    tensor([[0.1000, 0.2000, 0.3000]])
    """
    aligned = {name: x.clone() for name, x in tensors.items()}
    for _ in range(rounds):
        changed = False
        for places in space.perm_to_axes(strict=True).values():
            gain = sum(_products(aligned[name], reference[name], axis) for name, axis in places)
            assert isinstance(gain, Tensor)
            order = torch.stack([_assignment(matrix) for matrix in gain])
            changed |= bool((order != torch.arange(order.shape[1])).any())
            for name, axis in places:
                aligned[name] = _reordered(aligned[name], order, axis + 1)
        if not changed:
            break
    return aligned


def _reordered(x: Tensor, order: Tensor, axis: int) -> Tensor:
    """Row b of [B, *S] in the order b of [B, n] along an axis."""
    return x.take_along_dim(order.view(len(x), *(-1 if dim == axis else 1 for dim in range(1, x.dim()))), axis)


def _products(x: Tensor, reference: Tensor, axis: int) -> Tensor:
    """[B, n, n]: how well neuron j of a network would do at place i of the reference."""
    n = reference.shape[axis]
    return reference.movedim(axis, 0).reshape(n, -1) @ x.movedim(axis + 1, 1).reshape(len(x), n, -1).mT


def _assignment(gain: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
