"""The two networks whose speeds are compared are the same but for the library: in size, symmetry and output."""

import pytest
import torch
from nfn.common import WeightSpaceFeatures

from examples.classify_inrs.throughput import CLASSES, SHAPES, main, our_network, their_network
from examples.common import permute_each, random_permutations
from lopt.weight_space import WeightSpace

SPACE = WeightSpace.linear_stack(SHAPES)


def test_both_networks_are_invariant_and_have_as_many_coefficients():
    torch.manual_seed(0)
    weights = {name: torch.randn(3, *shape) for name, shape in SHAPES.items()}
    shuffled = permute_each(SPACE, weights, random_permutations(SPACE, 3, torch.Generator().manual_seed(0)))

    def features(tensors):
        every = [x.unsqueeze(1) for x in tensors.values()]
        return WeightSpaceFeatures(every[::2], every[1::2])

    ours, theirs = our_network(8, 2), their_network(features(weights), 8, 2)
    with torch.no_grad():
        for network, as_features in (
            (ours, lambda tensors: {name: x.unsqueeze(-1) for name, x in tensors.items()}),
            (theirs, features),
        ):
            one, other = network(as_features(weights)), network(as_features(shuffled))
            assert one.shape == (3, CLASSES)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    # nfn's modules that write to one tensor have a bias each, ours one for all of them.
    matrices = [sum(p.numel() for p in network.parameters() if p.dim() > 1) for network in (ours, theirs)]
    assert matrices[0] == pytest.approx(matrices[1], rel=0.01)


def test_the_command_prints_a_ratio(capsys):
    assert main(["--batch=2", "--channels=4", "--layers=2", "--rounds=1", "--threads=1"]) == 0
    said = capsys.readouterr().out
    assert "ratio" in said and "nfn" in said
    with pytest.raises(SystemExit):
        main(["--batch=0"])
