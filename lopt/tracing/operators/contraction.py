"""Operators that sum products over an axis of both operands: matrix products and their relatives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lopt.tracing.algebra import Term, find
from lopt.tracing.call import Call, WrongRule
from lopt.tracing.operators.pointwise import aligned_terms
from lopt.tracing.registry import register


def contract(
    call: Call, a: Sequence[Term], b: Sequence[Term], outside: Sequence[Term], batch: Sequence[Term] = ()
) -> None:
    """Entry meets entry along the axes a and b, for each position of the batch; `outside` are the other axes."""
    for x, y in zip(a, b, strict=True):
        call.unify(x, y)
    call.aligned((*batch, *a))
    call.mixes(a, (*batch, *outside))


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
    contract(call, [k], [k2], (n, m))
    call.set(call.out, _plus(call, call["self"] if a == "mat1" else None, (n, m)))


@register("aten::bmm", "aten::baddbmm", "aten::baddbmm_")
def bmm(call: Call) -> None:
    """(b, n, k) times (b, k, m)."""
    plain = "batch1" not in call
    (b, n, k), (b2, k2, m) = (call.terms(call[x]) for x in (("self", "mat2") if plain else ("batch1", "batch2")))
    call.unify(b, b2)
    contract(call, [k], [k2], (n, m), (b,))
    call.set(call.out, _plus(call, None if plain else call["self"], (b, n, m)))


@register("aten::_grouped_mm")
def grouped_mm(call: Call) -> None:
    """Stretches of the rows of (n, k), each times a matrix of its own out of (g, k, m); where they end, (g) says."""
    a, b, ends = call["self"], call["mat2"], call["offs"]
    if (a.dim(), b.dim()) != (2, 3) or ends is None or call["bias"] is not None:
        raise WrongRule("_grouped_mm of other shapes")
    (n, k), (g, k2, m) = call.terms(a), call.terms(b)
    call.fix((n, g, *call.terms(ends)))
    contract(call, [k], [k2], (n, g, m))
    call.set(call.out, (n, m))


@register("aten::addbmm", "aten::addbmm_")
def addbmm(call: Call) -> None:
    """(b, n, k) times (b, k, m), summed over the batch."""
    (b, n, k), (b2, k2, m) = call.terms(call["batch1"]), call.terms(call["batch2"])
    contract(call, [b, k], [b2, k2], (n, m))
    call.set(call.out, _plus(call, call["self"], (n, m)))


@register("aten::mv", "aten::addmv", "aten::addmv_")
def mv(call: Call) -> None:
    """(n, k) times (k)."""
    plain = "mat" not in call
    (n, k), (k2,) = call.terms(call["self" if plain else "mat"]), call.terms(call["vec"])
    contract(call, [k], [k2], (n,))
    call.set(call.out, _plus(call, None if plain else call["self"], (n,)))


@register("aten::dot", "aten::vdot")
def dot(call: Call) -> None:
    """(k) times (k)."""
    contract(call, call.terms(call["self"]), call.terms(call["other" if "other" in call else "tensor"]), ())
    call.set(call.out, ())


@register("aten::linear")
def linear(call: Call) -> None:
    """(*, k) times (m, k), transposed, plus (m)."""
    *rest, k = call.terms(call["input"])
    weight = call.terms(call["weight"])
    contract(call, [k], weight[-1:], (*rest, *weight[:-1]))
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
    contract(call, [k], [k2], (n, m), axes)
    call.set(call.out, (*axes, n, m))


@register("aten::linalg_solve_triangular")
def solve_triangular(call: Call) -> None:
    """a x = b with a (*, n, n) triangular, so in an order, and b (*, n, k); or x a = b with b (*, k, n)."""
    matrix, right = call.terms(call["self"]), call.terms(call["B"])
    row, other = (-2, -1) if call["left"] else (-1, -2)
    call.fix((*matrix[-2:], right[row]))
    batch: list[Term] = []
    for x, y in zip(matrix[:-2], right[:-2], strict=True):
        live = [term for term in (x, y) if find(term).size != 1] or [x]
        call.unify(live[0], live[-1])
        batch.append(live[0])
    call.mixes((right[row],), (*batch, right[other]))
    call.set(call.out, (*batch, *right[-2:]))


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
    outside = [term for axis, term in enumerate(axes) if axis not in summed]
    call.mixes((axes[axis] for axis in summed), outside)
    call.set(call.out, outside)
    for i, j in ((0, 1), (0, 2), (1, 2)):  # where two of them meet
        call.aligned(
            t for t, *column in zip(axes, *operands, strict=True) if all(find(column[k]).size != 1 for k in (i, j))
        )
