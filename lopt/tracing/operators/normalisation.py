"""Operators that bring entries to mean 0 and variance 1 along some axes, and scale them."""

from __future__ import annotations

from collections.abc import Sequence

from lopt.tracing.algebra import Term, free, product
from lopt.tracing.call import Call
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


def _affine(call: Call, names: Sequence[str], axes: Sequence[Term]) -> None:
    """Weights, biases and running statistics stand along the normalised axes."""
    for name in names:
        if call.get(name) is not None:
            for term, axis in zip(call.terms(call[name]), axes, strict=True):
                call.unify(term, axis)


@register("aten::native_layer_norm", "aten::_fused_rms_norm", "aten::layer_norm", "aten::rms_norm")
def layer_norm(call: Call) -> None:
    """Over the last axes: statistics, symmetric in the entries."""
    terms = call.terms(call["input"])
    inside = len(terms) - len(call["normalized_shape"])
    _affine(call, ("weight", "bias"), terms[inside:])
    call.mixes(terms[inside:], terms[:inside])
    result, *statistics = tensors_in(call.out)
    call.set(result, terms)
    for x in statistics:
        call.set(x, [*terms[:inside], *(call.fixed(1) for _ in range(x.dim() - inside))])


@register("aten::native_group_norm", "aten::group_norm")
def group_norm(call: Call) -> None:
    """Over the channels of a group, and space: channels move within groups, and groups among each other."""
    x = call["input"]
    batch, channels, *space = call.terms(x)
    count = call["group"] if "group" in call else call["num_groups"]
    groups, inner = free(count), free(x.shape[1] // count)
    call.unify(channels, product((groups, inner)))
    _affine(call, ("weight", "bias"), (channels,))
    call.mixes((inner, *space), (batch, groups))
    result, *statistics = tensors_in(call.out)
    call.set(result, (batch, channels, *space))
    for s in statistics:
        call.set(s, (batch, groups))


@register(
    *(f"aten::{name}" for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm")),
    *(f"aten::_native_batch_norm_legit{suffix}" for suffix in ("", "_no_training", "_functional")),
    *(f"aten::_batch_norm_{suffix}" for suffix in ("with_update", "no_update", "with_update_functional")),
    "aten::_batch_norm_impl_index",
)
def batch_norm(call: Call) -> None:
    """Over batch and space, each channel by itself, with its own running statistics."""
    terms = call.terms(call["input"])
    channels = terms[1]
    _affine(call, ("weight", "bias", "running_mean", "running_var"), (channels,))
    call.mixes([term for axis, term in enumerate(terms) if axis != 1], (channels,))
    result, *statistics = tensors_in(call.out)
    call.set(result, terms)
    for s in statistics:
        call.set(s, (channels,) if s.shape == result.shape[1:2] else [call.fixed(size) for size in s.shape])


@register("aten::_weight_norm_interface", "aten::_weight_norm")
def weight_norm(call: Call) -> None:
    """Each slice of v along `dim` over its norm, times its entry of g."""
    v = call.terms(call["v"])
    dim = call["dim"]
    for axis, term in enumerate(call.terms(call["g"])):
        if call["g"].shape[axis] != 1:
            call.unify(v[axis], term)
    call.mixes([t for a, t in enumerate(v) if a != dim], [t for a, t in enumerate(v) if a == dim])
    result, *norms = tensors_in(call.out)
    call.set(result, v)
    for norm in norms:
        call.set(norm, [v[a] if norm.shape[a] != 1 else call.fixed(1) for a in range(norm.dim())])
