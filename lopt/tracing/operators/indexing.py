"""Operators that read or write entries at given places: the axis that the places refer to keeps its order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lopt.tracing import labels
from lopt.tracing.algebra import Term, find
from lopt.tracing.call import Call
from lopt.tracing.operators.pointwise import broadcast
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


@register("aten::embedding", "aten::embedding_renorm_")
def embedding(call: Call) -> None:
    """Rows (v, e) at the places (*) -> (*, e)."""
    rows = call["weight"] if "weight" in call else call["self"]
    entries, *features = call.terms(rows)
    call.fix((entries,))
    places = call.terms(call["indices"])
    if "weight" in call:
        call.set(call.out, (*places, *features))


@register("aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::embedding_bag")
def embedding_bag(call: Call) -> None:
    """Sums of rows (v, e) over bags -> (bags, e)."""
    entries, features = call.terms(call["weight"])
    call.fix((entries, *call.terms(call["indices"]), *call.terms(call["offsets"])))
    if call["per_sample_weights"] is not None:
        call.fix(call.terms(call["per_sample_weights"]))
    result, *rest = tensors_in(call.out)
    call.set(result, (call.fixed(result.shape[0]), features))
    for out in rest:
        call.set(out, labels.constant(out.shape, call.reason))


@register("aten::index_select")
def index_select(call: Call) -> None:
    """Entries of one axis at the places (k)."""
    x = call["self"]
    terms = list(call.terms(x))
    axis = call.axis("dim", x)
    call.fix(terms[axis : axis + 1])
    terms[axis : axis + 1] = call.terms(call["index"]) or (call.fixed(1),)
    call.set(call.out, terms[: call.out.dim()])


@register("aten::index", "aten::_unsafe_index", "aten::_index_put_impl_", "aten::index_put", "aten::index_put_")
@register("aten::_unsafe_index_put")
def index(call: Call) -> None:
    """x[i, :, j]: the places are broadcast against each other, and stand where the axes stood that they read."""
    x = call["self"]
    result, terms, places = _indexed(call, x, list(call["indices"]))
    if "values" not in call:
        call.set(call.out, result)
        return
    values = call.terms(call["values"])
    for value, axis in zip(reversed(values), reversed(result), strict=False):
        if find(value).size == find(axis).size:
            call.unify(value, axis)
        elif find(value).size != 1:
            call.fix((value, axis))
    if not call["accumulate"]:  # of two values at one place the later one stays
        call.fix(places)
    call.set(call.out, terms)


def _indexed(call: Call, x: Tensor, indices: list[Tensor | None]) -> tuple[list[Term], list[Term], list[Term]]:
    """The axes of x[indices], the axes of x, and the axes of the places."""
    terms = list(call.terms(x))
    read: list[int] = []
    tensors: list[Tensor] = []
    masked = 0
    axis = 0
    for place in indices:
        if place is None:
            axis += 1
            continue
        mask = place.dtype in (torch.bool, torch.uint8)
        span = place.dim() if mask else 1
        if mask:
            call.fix(call.terms(place))
            call.routes()
            masked += 1
        else:
            tensors.append(place)
        read += range(axis, axis + span)
        axis += span
    call.fix(terms[a] for a in read)
    rest = [term for a, term in enumerate(terms) if a not in read]
    call.mixes([terms[a] for a in read], rest)
    rank = max([t.dim() for t in tensors], default=0)
    places = broadcast(call, tensors, rank) if tensors else []
    if masked:  # as many places as the mask has true entries: known only from the values
        call.fix(places)
        count = call.out.dim() - len(rest) if "values" not in call else max(rank, 1)
        places = [call.fixed(0)] * count
    together = read == list(range(read[0], read[0] + len(read))) if read else True
    at = read[0] if together and read else 0
    result = [*rest[:at], *places, *rest[at:]]
    if "values" not in call:
        result = [t if find(t).size == n else call.fixed(n) for t, n in zip(result, call.out.shape, strict=True)]
    return result, terms, places


@register("aten::gather", "aten::take_along_dim")
def gather(call: Call) -> None:
    """out[i, j] = x[index[i, j], j] along one axis; the other axes are aligned."""
    x, places = call["self"], call["index"]
    axis = call.axis("dim", x)
    terms, at = list(call.terms(x)), list(call.terms(places))
    _meet(call, terms, at, axis)
    call.set(call.out, at)


@register(*(f"aten::scatter{suffix}" for suffix in ("", "_", "_add", "_add_", "_reduce", "_reduce_")))
def scatter(call: Call) -> None:
    """x[index[i, j], j] = source[i, j] along one axis; the other axes are aligned."""
    x = call["self"]
    axis = call.axis("dim", x)
    terms, at = list(call.terms(x)), list(call.terms(call["index"]))
    _meet(call, terms, at, axis)
    if not call.func._schema.name.rstrip("_").endswith(("_add", "_reduce")) and call.get("reduce") is None:
        call.fix(at[axis : axis + 1])  # of two entries at one place the later one stays
    if isinstance(call.get("src"), Tensor):
        source = list(call.terms(call["src"]))
        for a, (s, place) in enumerate(zip(source, at, strict=True)):
            if find(s).size == find(place).size:
                call.unify(s, place)
            else:
                call.fix((s, place, terms[a]))
    call.set(call.out, terms)


def _meet(call: Call, terms: Sequence[Term], at: Sequence[Term], axis: int) -> None:
    for a, (term, place) in enumerate(zip(terms, at, strict=True)):
        if a == axis:
            call.fix((term,))
        elif find(term).size == find(place).size:
            call.unify(term, place)
        else:
            call.fix((term, place))
    call.mixes(terms[axis : axis + 1], [t for a, t in enumerate(terms) if a != axis])


@register("aten::index_add", "aten::index_add_", "aten::index_copy", "aten::index_copy_", "aten::index_reduce")
@register("aten::index_fill", "aten::index_fill_")
def index_add(call: Call) -> None:
    """Slices of a source at the places (k) of one axis."""
    x = call["self"]
    axis = call.axis("dim", x)
    terms = list(call.terms(x))
    places = call.terms(call["index"])
    call.fix(terms[axis : axis + 1])
    call.mixes(terms[axis : axis + 1], [t for a, t in enumerate(terms) if a != axis])
    if "copy" in call.func._schema.name:  # of two slices at one place the later one stays
        call.fix(places)
    if "source" in call:
        for a, (source, term) in enumerate(zip(call.terms(call["source"]), terms, strict=True)):
            call.unify(source, places[0] if a == axis and places else term)
    call.set(call.out, terms)


@register("aten::slice_scatter", "aten::select_scatter", "aten::diagonal_scatter")
@register("aten::take", "aten::put", "aten::put_")
def anywhere(call: Call) -> None:
    """Places that mix the axes: nothing can be permuted."""
    for x in call.tensors:
        call.fix(call.terms(x))
    for out in tensors_in(call.out):
        call.set(out, labels.constant(out.shape, call.reason))


@register(
    "aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::masked_scatter", "aten::masked_scatter_"
)
@register("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::histc")
@register("aten::searchsorted", "aten::bucketize", "aten::repeat_interleave.Tensor")
def by_value(call: Call) -> None:
    """What comes out depends on values in their order."""
    anywhere(call)
    call.routes()
