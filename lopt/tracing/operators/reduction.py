"""Operators that bring an axis down to one number, the same under every permutation; and those that keep the order."""

from __future__ import annotations

from torch import Tensor

from lopt.tracing.algebra import Term
from lopt.tracing.call import Call
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


def _input(call: Call) -> Tensor:
    return call["self"] if "self" in call else call.tensors[0]


def chosen_axes(call: Call, rank: int) -> set[int]:
    """The axes that the argument `dim` names; all of them if it names none."""
    dims = call.get("dim")
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        return set(range(rank))
    return {axis % max(1, rank) for axis in ([dims] if isinstance(dims, int) else dims)}


def without(call: Call, terms: tuple[Term, ...], axes: set[int]) -> list[Term]:
    """The terms of the result: the reduced axes are gone, or have one entry with `keepdim`."""
    kept = call.get("keepdim")
    return [call.fixed(1) if i in axes else term for i, term in enumerate(terms) if kept or i not in axes]


@register(
    *(f"aten::{name}" for name in ("sum", "mean", "nansum", "prod", "amax", "amin", "all", "any", "logsumexp")),
    *(f"aten::{name}" for name in ("var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm")),
    *(f"aten::{name}" for name in ("max", "min", "aminmax", "count_nonzero", "nanmean")),
)
def reduce(call: Call) -> None:
    """The sum, the largest, the norm: the order does not matter."""
    x = _input(call)
    terms = call.terms(x)
    axes = chosen_axes(call, x.dim())
    for out in tensors_in(call.out):
        call.set(out, without(call, terms, axes))


@register("aten::max.dim", "aten::min.dim", "aten::median.dim", "aten::nanmedian.dim", "aten::mode", "aten::kthvalue")
@register("aten::argmax", "aten::argmin", "aten::median", "aten::nanmedian")
def choose(call: Call) -> None:
    """Which entry it is depends on the order, and so may the one of two that are alike."""
    x = _input(call)
    terms = call.terms(x)
    axes = chosen_axes(call, x.dim())
    call.fix(terms[axis] for axis in axes)
    call.routes()
    for out in tensors_in(call.out):
        call.set(out, without(call, terms, axes))


@register("aten::_softmax", "aten::_log_softmax", "aten::softmax", "aten::log_softmax", "aten::_safe_softmax")
def softmax(call: Call) -> None:
    """Entries along one axis meet; alike for every permutation of them."""
    _along(call, ordered=False)


@register(
    *(f"aten::{name}" for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")),
    *(f"aten::{name}" for name in ("cumsum_", "cumprod_", "sort", "argsort", "topk", "msort", "renorm", "renorm_")),
)
def ordered(call: Call) -> None:
    """What happens along the axis depends on the order."""
    _along(call, ordered=True)


def _along(call: Call, ordered: bool) -> None:
    x = _input(call)
    terms = list(call.terms(x))
    axis = call.axis("dim", x) if "dim" in call else 0
    outside = [term for i, term in enumerate(terms) if i != axis]
    if ordered:
        call.fix(terms[axis : axis + 1])
        call.routes()
    call.mixes(terms[axis : axis + 1], outside)
    for out in tensors_in(call.out):
        same = out.dim() == 0 or out.shape[axis] == x.shape[axis]
        call.set(out, terms if same else [*terms[:axis], call.fixed(out.shape[axis]), *terms[axis + 1 :]])
