"""Fused attention. Python's own form of it is taken apart by PyTorch; these are the kernels that it may choose."""

from __future__ import annotations

from torch import Tensor

from lopt.tracing import labels
from lopt.tracing.algebra import find
from lopt.tracing.call import Call
from lopt.tracing.operators.contraction import contract
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


@register(
    *(f"aten::_scaled_dot_product_{name}" for name in ("flash_attention", "efficient_attention", "cudnn_attention")),
    *(f"aten::_scaled_dot_product_{name}" for name in ("flash_attention_for_cpu", "fused_attention_overrideable")),
)
def scaled_dot_product(call: Call) -> None:
    """softmax(q kᵀ) v with (b, h, t, d), (b, h, s, d) and (b, h, s, e) -> (b, h, t, e)."""
    query, key, value = (call.terms(call[name]) for name in ("query", "key", "value"))
    for other in (key, value):
        for axis in (0, 1):
            call.unify(query[axis], other[axis])
    batch = query[:2]
    contract(call, query[3:], key[3:], (query[2], key[2]), batch)
    contract(call, key[2:3], value[2:3], (query[2], value[3]), batch)
    call.mixes(key[2:3], (*batch, query[2]))
    for name in ("attn_mask", "attn_bias"):
        if isinstance(call.get(name), Tensor):
            scores = (*batch, query[2], key[2])
            for term, axis in zip(reversed(call.terms(call[name])), reversed(scores), strict=False):
                if find(term).size != 1:
                    call.unify(term, axis)
    if call["is_causal"]:
        call.fix((query[2], key[2]))
    result, *rest = tensors_in(call.out)
    call.set(result, (*query[:3], value[3]))
    for out in rest:
        call.set(out, labels.constant(out.shape, call.reason))
