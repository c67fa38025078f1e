"""Operators that make tensors: uniform ones are alike under every permutation, all others are constants."""

from __future__ import annotations

from lopt.tracing import labels
from lopt.tracing.call import Call
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


@register(
    *(f"aten::{name}" for name in ("zeros", "ones", "full", "empty", "scalar_tensor", "empty_strided", "zero_")),
    *(f"aten::new_{name}" for name in ("zeros", "ones", "full", "empty", "empty_strided")),
    *(f"aten::{name}_like" for name in ("zeros", "ones", "full", "empty")),
    "aten::empty_permuted",
    "aten::_efficientzerotensor",
)
def uniform(call: Call) -> None:
    """One value everywhere (or none yet): free, until it meets something."""
    if call.func._schema.is_mutable:
        return
    shape = tuple(call.out.shape)
    wanted = [axis for axis in range(len(shape)) if call.is_wanted(call.origin(axis))]
    call.set(call.out, labels.fresh(shape, call.origin, wanted))


@register("aten::fill_", "aten::fill")
def fill(call: Call) -> None:
    """Uniform; the value is one number."""
    uniform(call)


@register(
    *(f"aten::{name}" for name in ("arange", "range", "linspace", "logspace", "eye", "tril_indices", "triu_indices")),
    *(f"aten::{name}_window" for name in ("hann", "hamming", "blackman", "bartlett", "kaiser")),
    *(f"aten::{name}" for name in ("rand_like", "randn_like", "randint_like", "_cudnn_init_dropout_state")),
)
def constant(call: Call) -> None:
    """The entries differ and do not depend on the arguments' values."""
    for out in tensors_in(call.out):
        call.set(out, labels.constant(out.shape, call.reason))


@register("lopt::random")
def random(call: Call) -> None:
    """Random numbers are not permuted with the weights, so that what they meet is fixed: trace in evaluation mode."""
    for tensor in call.tensors:
        call.fix(call.terms(tensor))
    constant(call)
