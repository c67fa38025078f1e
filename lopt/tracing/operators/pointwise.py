"""Operators that work entry by entry, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lopt.tracing.algebra import Term, cut, find
from lopt.tracing.call import Call
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


@register("lopt::pointwise", "aten::copy_", "aten::copy", "aten::where", "aten::masked_fill_")
@register("aten::polar", "aten::complex", "aten::_conj", "aten::_prelu_kernel", "aten::max.other", "aten::min.other")
@register(
    *(f"aten::{name}" for name in ("hardswish", "hardswish_", "log_sigmoid_forward", "leaky_relu", "masked_fill"))
)
def pointwise(call: Call) -> None:
    """Every operator with PyTorch's tag `pointwise`: operands are aligned from the right."""
    for out in tensors_in(call.out):
        call.set(out, broadcast(call, call.tensors, out.dim()))


def broadcast(call: Call, operands: Sequence[Tensor], rank: int) -> list[Term]:
    """The terms of the result of broadcasting: axes of one entry say nothing where another has more."""
    axes = aligned_terms(call, [call.terms(operand) for operand in operands])
    return [*(call.fixed(1) for _ in range(rank - len(axes))), *axes]


def aligned_terms(call: Call, operands: Sequence[Sequence[Term]]) -> list[Term]:
    """The terms of several operands, aligned from the right and tied to one another where they meet."""
    rank = max((len(terms) for terms in operands), default=0)
    axes: list[Term | None] = [None] * rank
    for terms in operands:
        for i, term in enumerate(terms, rank - len(terms)):
            known = axes[i]
            if known is None or find(known).size == 1:
                axes[i] = term
            elif find(term).size != 1:
                call.unify(known, term)
    return [call.fixed(1) if term is None else term for term in axes]


@register("aten::glu")
def glu(call: Call) -> None:
    """The first half of an axis times the sigmoid of the second: the halves are permuted alike."""
    x = call["self"]
    terms = list(call.terms(x))
    axis = call.axis("dim", x)
    first, second = cut(terms[axis], x.shape[axis] // 2, call.reason)
    call.unify(first, second)
    call.set(call.out, [*terms[:axis], first, *terms[axis + 1 :]])
