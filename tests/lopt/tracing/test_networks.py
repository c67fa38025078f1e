"""What `lopt.trace` finds in networks of every kind is what is written by hand, and that is true."""

import re
import warnings

import pytest
import torch

import lopt
from lopt import WeightSpace
from lopt.tracing import TraceWarning
from tests.lopt.tracing.networks.catalogue import NETWORKS
from tests.lopt.tracing.networks.network import Network


def build(name: str) -> Network:
    torch.manual_seed(0)
    return NETWORKS[name]()


def texts(space: WeightSpace) -> dict[str, str]:
    return {name: ", ".join(map(str, axes)) for name, axes in [*space.items(), *space.buffers.items()]}


def shape_of(text: str) -> str:
    """Without the names: `_:5*_[_]:3` for `H:5*d[H]:3`."""
    return re.sub(r"[A-Za-z]\w*", "_", text)


def differing(found: WeightSpace, wanted: WeightSpace) -> str:
    """Both spaces side by side, the parameters only whose axes differ. Groups go by other names in the two; where they
    are of the same sizes everywhere, only a person sees which is the wrong one, so that all are shown."""
    one, two, a, b = texts(found), texts(wanted), texts(found.canonical()), texts(wanted.canonical())
    names = dict.fromkeys([*two, *one])
    chosen = [name for name in names if shape_of(a.get(name, "")) != shape_of(b.get(name, ""))] or names
    sides = ((name, one.get(name, "fixed"), two.get(name, "fixed")) for name in chosen)
    return "\n".join(f"{name}\n    found   {x}\n    wanted  {y}" for name, x, y in sides)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_traced_is_what_is_written_by_hand(name):
    module, inputs, wanted, told = build(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TraceWarning)
        found = lopt.trace(module, *inputs, verify=False)
    messages = [str(w.message) for w in caught if issubclass(w.category, TraceWarning)]
    assert found.same_symmetry(wanted), f"{name}: found other groups than those wanted\n{differing(found, wanted)}"
    assert bool(messages) == bool(told), messages
    assert all(re.search(told, message) for message in messages), messages


@pytest.mark.parametrize("name", NETWORKS)
def test_another_symmetry_is_told_apart(name):
    """Spaces that are compared by what they say: one group less, or none that depends on others, is not the same."""
    wanted = build(name).space
    assert wanted.groups
    for group in wanted.groups.values():
        assert not wanted.fixed([group.name]).same_symmetry(wanted)
        if group.within:
            assert not wanted.independent().same_symmetry(wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_by_hand_is_true(name):
    module, inputs, wanted, _ = build(name)
    found = wanted.verify(module, *inputs).raise_if_failed()
    assert not found.untested
    assert max(found.joint.value, found.joint.gradient) < 1e-8
