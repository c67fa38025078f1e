"""Operators whose result is a Python value: invariant if it is one number; but it may decide what runs."""

from __future__ import annotations

from lopt.tracing.call import Call
from lopt.tracing.operators.pointwise import broadcast
from lopt.tracing.registry import register


@register("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")
def read(call: Call) -> None:
    """One entry, the same under every permutation."""
    call.routes()


@register("aten::equal", "aten::is_same_size", "aten::_fused_sdp_choice", "aten::sym_size", "aten::sym_numel")
@register("aten::sym_stride", "aten::_assert_async", "aten::_assert_tensor_metadata", "aten::_assert_scalar")
@register("prim::device", "prim::layout", "prim::dtype")  # a tensor subclass asks for these through the dispatcher
@register("aten::is_pinned", "aten::_has_same_storage_numel", "aten::_is_all_true", "aten::_is_any_true")
def compare(call: Call) -> None:
    """A property of whole tensors; equality sets entry beside entry."""
    if call.func._schema.name == "aten::equal" and call["self"].shape == call["other"].shape:
        broadcast(call, [call["self"], call["other"]], call["self"].dim())
        call.routes()
