"""Every rule of an operator: what it leaves is as it should be, and what it leaves is true (operator_rows.py)."""

import functools

import pytest
import torch

from lopt.tracing import analyse
from lopt.tracing.registry import RULES
from tests.lopt.tracing.operator_rows import ROWS, Net

# Names of a regular series that this PyTorch has gaps in.
ABSENT = {
    "_adaptive_avg_pool1d", "mkldnn_max_pool1d", "fractional_max_pool1d", "max_unpool1d", "_upsample_linear1d_aa",
    "_upsample_trilinear3d_aa",
}  # fmt: skip

# Names that no row can exercise here, and why.
ELSEWHERE = {
    "is done before a trace can see it": ("detach_",),
    "needs a layout or sizes of its own": ("mkldnn_max_pool2d", "mkldnn_max_pool3d", "sspaddmm", "_grouped_mm"),
    "needs CUDA, or another device": (
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
        "cudnn_convolution", "cudnn_convolution_transpose", "convolution_overrideable", "cudnn_batch_norm",
        "miopen_batch_norm", "_cudnn_init_dropout_state",
    ),
}  # fmt: skip


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


@functools.cache
def known_operators() -> dict[str, list[str]]:
    """All that PyTorch knows, by their names without the overload."""
    found: dict[str, list[str]] = {}
    for name in torch._C._dispatch_get_all_op_names():
        found.setdefault(name.split(".")[0], []).append(name)
    return found


def overloads(name: str) -> list[str]:
    """The operators that a rule's name stands for, as PyTorch names them; those with `out=` are run without."""
    found = [one for one in known_operators().get(name.split(".")[0], []) if "." not in name or one == name]
    return [known for known in found if not any(a.is_out for a in torch._C._get_schema(*_split(known)).arguments)]


def _split(name: str) -> tuple[str, str]:
    operator, _, overload = name.partition(".")
    return operator, overload


def taken_apart(name: str) -> bool:
    """Whether PyTorch takes the operator apart before a trace can see it."""
    key = "CompositeImplicitAutograd"
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(one, key) for one in overloads(name))


def test_every_rule_has_a_row(monkeypatch):
    asked: set[str] = set()
    for name, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, name, lambda call, name=name, rule=rule: (asked.add(name), rule(call)))
    for row in ROWS.values():
        net = Net(row)
        analyse(net, net.x, verify=False)
    missing = {name for name in RULES if name.startswith(("aten::", "lopt::")) and not taken_apart(name)} - asked
    missing -= {f"aten::{name}" for names in ELSEWHERE.values() for name in names}
    assert not missing, " ".join(sorted(missing))


def test_every_name_is_an_operator():
    absent = {name for name in RULES if name.startswith("aten::") and not overloads(name)}
    assert absent <= {f"aten::{name}" for name in ABSENT}, " ".join(sorted(absent))
