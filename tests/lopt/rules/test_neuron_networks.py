"""The Neuron rule on every network of the tracing tests, with the symmetry that `lopt.trace` finds there.

In float32 with the θ that ships: one that is drawn at random can let directions cancel, and bringing what is left to
RMS 1 then shows rounding. In float64 with a drawn one, whose heads are larger.
"""

import pytest
import torch

import lopt
from lopt.rules import Neuron
from lopt.testing import TOLERANCE
from tests.lopt.rules.test_neuron import neuron, symmetry_error
from tests.lopt.tracing.networks.catalogue import NETWORKS


@pytest.mark.filterwarnings("ignore::lopt.tracing.TraceWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_equivariant_on_every_network(name):
    torch.manual_seed(0)
    module, inputs, *_ = NETWORKS[name]()
    space = lopt.trace(module, *inputs, verify=False)
    space = space.restrict(k for k, p in module.named_parameters() if k in space and not p.is_complex())
    shipped = lopt.load_rule("neuron-1")
    assert isinstance(shipped, Neuron)
    # The shipped rule takes the mean of a row away: what is left of a row that is nearly its mean has fewer digits.
    assert symmetry_error(shipped, space, torch.float32) < 4 * TOLERANCE[torch.float32]
    for rule in (shipped, neuron()):
        assert symmetry_error(rule, space, torch.float64) < TOLERANCE[torch.float64]
