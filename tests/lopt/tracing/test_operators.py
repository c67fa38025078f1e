"""Every rule of an operator: what it leaves is as it should be, and what it leaves is true (operator_rows.py)."""

import pytest
import torch
from torch._ops import OpOverloadPacket

from lopt.tracing import analyse
from lopt.tracing.registry import RULES
from tests.lopt.tracing.operator_rows import ROWS, Net

EXERCISED: set[str] = set()

# Names that no row can exercise here, and why.
ELSEWHERE = {
    "needs CUDA, or another device": (
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
        "cudnn_convolution", "cudnn_convolution_transpose", "convolution_overrideable", "cudnn_batch_norm",
        "miopen_batch_norm", "_cudnn_init_dropout_state",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def recorded():
    """Notes which rules were asked."""
    before = dict(RULES)

    def noting(name, rule):
        def asked(call):
            EXERCISED.add(name)
            rule(call)

        return asked

    RULES.update({name: noting(name, rule) for name, rule in before.items()})
    yield
    RULES.update(before)


@pytest.mark.parametrize("name", ROWS)
def test_a_row(name):
    torch.manual_seed(0)
    row = ROWS[name]
    net = Net(row)
    found = analyse(net, net.x, verify=not row.single)
    assert not found.unknown
    groups = [group for group in found.space.groups.values() if group.size > 1]
    assert len(groups) == row.groups, found.space
    if found.verification is not None:
        found.verification.raise_if_failed()
        assert not found.verification.untested


@pytest.mark.parametrize("name", ROWS)
def test_a_row_in_inference_mode(name):
    """There PyTorch does not take operators apart before they are seen."""
    torch.manual_seed(0)
    net = Net(ROWS[name])
    with torch.inference_mode():
        found = analyse(net, net.x, verify=False)
    assert len([g for g in found.space.groups.values() if g.size > 1]) == ROWS[name].groups, found.space


def test_every_rule_has_a_row():
    """Runs last: what the rows above have asked for."""
    missing = {name for name in RULES if name.startswith(("aten::", "lopt::"))} - EXERCISED
    missing -= {f"aten::{name}" for names in ELSEWHERE.values() for name in names}
    assert not missing, sorted(missing)


def test_every_name_is_an_operator():
    for name in RULES:
        namespace, _, rest = name.partition("::")
        if namespace == "aten":
            operator, _, overload = rest.partition(".")
            packet = getattr(torch.ops.aten, operator)
            assert isinstance(packet, OpOverloadPacket)
            assert not overload or overload in packet.overloads()
