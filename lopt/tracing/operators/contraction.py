"""Operators that sum products over an axis of both operands: matrix products and their relatives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lopt.tracing.algebra import Term, find
from lopt.tracing.call import Call
from lopt.tracing.operators.pointwise import aligned_terms
from lopt.tracing.registry import register


def contract(call: Call, a: Sequence[Term], b: Sequence[Term], batch: Sequence[Term] = ()) -> None:
    """Entry meets entry along the axes a and b, for each position of the batch."""
    for x, y in zip(a, b, strict=True):
        call.unify(x, y)
    call.aligned((*batch, *a))


def _plus(call: Call, addend: Tensor | None, axes: Sequence[Term]) -> Sequence[Term]:
    """The axes of a product to which another tensor is added, with broadcasting."""
    for term, axis in zip(reversed(call.terms(addend) if addend is not None else ()), reversed(axes), strict=False):
        if find(term).size != 1:
            call.unify(term, axis)
    return axes


@register("aten::mm", "aten::addmm", "aten::addmm_", "aten::_addmm_activation", "aten::_int_mm", "aten::sspaddmm")
def mm(call: Call) -> None:
    """(n, k) times (k, m)."""
    a, b = ("mat1", "mat2") if "mat1" in call else ("self", "mat2")
    (n, k), (k2, m) = call.terms(call[a]), call.terms(call[b])
    contract(call, [k], [k2])
    call.set(call.out, _plus(call, call["self"] if a == "mat1" else None, (n, m)))


@register("aten::bmm", "aten::baddbmm", "aten::baddbmm_")
def bmm(call: Call) -> None:
    """(b, n, k) times (b, k, m)."""
    plain = "batch1" not in call
    (b, n, k), (b2, k2, m) = (call.terms(call[x]) for x in (("self", "mat2") if plain else ("batch1", "batch2")))
    call.unify(b, b2)
    contract(call, [k], [k2], [b])
    call.set(call.out, _plus(call, None if plain else call["self"], (b, n, m)))


@register("aten::addbmm", "aten::addbmm_")
def addbmm(call: Call) -> None:
    """(b, n, k) times (b, k, m), summed over the batch."""
    (b, n, k), (b2, k2, m) = call.terms(call["batch1"]), call.terms(call["batch2"])
    contract(call, [b, k], [b2, k2])
    call.set(call.out, _plus(call, call["self"], (n, m)))


@register("aten::mv", "aten::addmv", "aten::addmv_")
def mv(call: Call) -> None:
    """(n, k) times (k)."""
    plain = "mat" not in call
    (n, k), (k2,) = call.terms(call["self" if plain else "mat"]), call.terms(call["vec"])
    contract(call, [k], [k2])
    call.set(call.out, _plus(call, None if plain else call["self"], (n,)))


@register("aten::dot", "aten::vdot")
def dot(call: Call) -> None:
    """(k) times (k)."""
    contract(call, call.terms(call["self"]), call.terms(call["other" if "other" in call else "tensor"]))
    call.set(call.out, ())


@register("aten::linear")
def linear(call: Call) -> None:
    """(*, k) times (m, k), transposed, plus (m)."""
    *rest, k = call.terms(call["input"])
    weight = call.terms(call["weight"])
    contract(call, [k], weight[-1:])
    call.set(call.out, _plus(call, call["bias"], (*rest, *weight[:-1])))


@register("aten::addr", "aten::addr_")
def addr(call: Call) -> None:
    """(n) times (m)."""
    call.set(call.out, _plus(call, call["self"], (*call.terms(call["vec1"]), *call.terms(call["vec2"]))))


@register("aten::_cdist_forward", "aten::_euclidean_dist")
def cdist(call: Call) -> None:
    """Distances between (*, n, k) and (*, m, k)."""
    *batch, n, k = call.terms(call["x1"])
    *batch2, m, k2 = call.terms(call["x2"])
    axes = aligned_terms(call, (batch, batch2))
    contract(call, [k], [k2], batch)
    call.aligned((*batch2, k2))
    call.set(call.out, (*axes, n, m))


@register("aten::_trilinear")
def trilinear(call: Call) -> None:
    """A sum over three tensors that are expanded to one rank: nn.Bilinear."""
    operands = []
    for i in (1, 2, 3):
        terms = list(call.terms(call[f"i{i}"]))
        for axis in call[f"expand{i}"]:
            terms.insert(axis, call.fixed(1))
        operands.append(terms)
    axes: list[Term] = []
    for column in zip(*operands, strict=True):
        live = [term for term in column if find(term).size != 1] or [column[0]]
        for other in live[1:]:
            call.unify(live[0], other)
        axes.append(live[0])
    summed = {axis % len(axes) for axis in call["sumdim"]}
    call.set(call.out, [term for axis, term in enumerate(axes) if axis not in summed])
    for i, j in ((0, 1), (0, 2), (1, 2)):  # where two of them meet
        call.aligned(
            t for t, *column in zip(axes, *operands, strict=True) if all(find(column[k]).size != 1 for k in (i, j))
        )
