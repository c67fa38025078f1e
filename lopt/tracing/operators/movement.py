"""Operators that move entries about and compute nothing: views, transposes, slices, concatenations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lopt.tracing import labels
from lopt.tracing.algebra import concatenation, fixed, free, product
from lopt.tracing.call import Call
from lopt.tracing.labels import Labels
from lopt.tracing.registry import register


@register(*(f"aten::{name}" for name in ("clone", "detach", "detach_", "alias", "lift_fresh", "lift", "_to_copy")))
@register(*(f"aten::{name}" for name in ("contiguous", "resolve_conj", "resolve_neg", "_neg_view", "positive")))
@register(
    "aten::lift_fresh_copy", "aten::_lazy_clone", "aten::real", "aten::imag", "aten::conj", "aten::view_copy.dtype"
)
def same(call: Call) -> None:
    """The same entries in the same places."""
    call.set(call.out, call.labels(call["self"]))


@register("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias", "aten::view_copy")
def view(call: Call) -> None:
    """The same entries in row-major order under another shape."""
    shape, old = tuple(call.out.shape), call.labels(call["self"])
    call.set(call.out, labels.reshape(old, shape, call.origin, call.tracer.wanted, call.reason))


@register("aten::view.dtype")
def view_dtype(call: Call) -> None:
    """The same bytes as other numbers: of another width, the last axis is not what it was."""
    x, out = call["self"], call.out
    if x.shape == out.shape:
        return same(call)
    terms = call.terms(x)
    call.fix(terms[-1:])
    call.set(out, (*terms[:-1], call.fixed(out.shape[-1])))


@register("aten::as_strided", "aten::as_strided_", "aten::as_strided_copy")
def as_strided(call: Call) -> None:
    """Any places of the memory: known only where they are the tensor's own."""
    x = call["self"]
    place = call.tracer.place(x)
    offset = place.offset if call["storage_offset"] is None else call["storage_offset"]
    same_steps = all(a == b or n == 1 for n, a, b in zip(place.shape, place.stride, call["stride"], strict=False))
    if tuple(call["size"]) == place.shape and offset == place.offset and same_steps:
        return same(call)
    call.fix(call.terms(x))
    call.set(call.out, labels.constant(call.out.shape, call.reason))


@register("aten::permute", "aten::permute_copy")
def permute(call: Call) -> None:
    """Axes in another order."""
    x = call["self"]
    call.set(call.out, labels.permute(call.labels(x), [axis % x.dim() for axis in call["dims"]]))


@register("aten::transpose", "aten::transpose_", "aten::swapaxes_", "aten::swapdims_", "aten::transpose_copy")
def transpose(call: Call) -> None:
    """Two axes exchanged."""
    x = call["self"]
    a, b = (call[name] for name in ("dim0", "dim1")) if "dim0" in call else (call["axis0"], call["axis1"])
    order = list(range(x.dim()))
    if order:
        order[a % x.dim()], order[b % x.dim()] = order[b % x.dim()], order[a % x.dim()]
    call.set(call.out, labels.permute(call.labels(x), order))


@register("aten::t", "aten::t_", "aten::t_copy")
def t(call: Call) -> None:
    """A matrix transposed."""
    call.set(call.out, labels.permute(call.labels(call["self"]), range(call.out.dim())[::-1]))


@register("aten::unsqueeze", "aten::unsqueeze_", "aten::unsqueeze_copy")
def unsqueeze(call: Call) -> None:
    """A new axis of one entry."""
    call.set(call.out, labels.insert(call.labels(call["self"]), call["dim"] % call.out.dim()))


@register("aten::squeeze", "aten::squeeze_", "aten::squeeze_copy")
def squeeze(call: Call) -> None:
    """Without axes of one entry."""
    made = call.labels(call["self"])
    rank = len(made.shape)
    dims = call["dim"] if "dim" in call else range(rank)
    chosen = {axis % max(1, rank) for axis in ([dims] if isinstance(dims, int) else dims)}
    for axis in sorted(chosen, reverse=True):
        if rank and made.shape[axis] == 1:
            made = labels.drop(made, axis)
    call.set(call.out, made)


@register("aten::select", "aten::select_copy")
def select(call: Call) -> None:
    """One entry of an axis."""
    x = call["self"]
    axis = call.axis("dim", x)
    call.set(call.out, labels.drop(_narrow(call, x, axis, int(call["index"]) % x.shape[axis], 1), axis))


@register("aten::slice", "aten::slice_copy")
def slice_(call: Call) -> None:
    """A stretch of an axis, or every n-th entry of one."""
    x = call["self"]
    axis = call.axis("dim", x)
    start, end, step = slice(call["start"], call["end"], call["step"]).indices(x.shape[axis])
    made = _narrow(call, x, axis, start, max(0, end - start))
    call.set(call.out, made if step == 1 else labels.stride(made, axis, step, call.reason))


@register("aten::unbind", "aten::unbind_copy")
def unbind(call: Call) -> None:
    """The entries of an axis, each a tensor."""
    x = call["self"]
    axis = call.axis("dim", x)
    for index, out in enumerate(call.out):
        call.set(out, labels.drop(_narrow(call, x, axis, index, 1), axis))


@register("aten::split", "aten::split_with_sizes", "aten::unsafe_split", "aten::unsafe_split_with_sizes")
@register("aten::split_copy", "aten::split_with_sizes_copy", "aten::chunk", "aten::unsafe_chunk", "aten::tensor_split")
def split(call: Call) -> None:
    """An axis cut into stretches."""
    x, start = call["self"], 0
    axis = call.axis("dim", x)
    for out in call.out:
        call.set(out, _narrow(call, x, axis, start, out.shape[axis]))
        start += out.shape[axis]


def _narrow(call: Call, x: Tensor, axis: int, start: int, length: int) -> Labels:
    made, origins = labels.narrow(call.labels(x), axis, start, length, call.reason)
    call.slices(origins)
    return made


@register("aten::cat", "aten::concat", "aten::concatenate")
def cat(call: Call) -> None:
    """One after the other; an empty vector may stand for nothing."""
    tensors = [x for x in call["tensors"] if x.dim() == call.out.dim()]
    call.set(call.out, labels.join([call.labels(x) for x in tensors], call["dim"] % max(1, call.out.dim())))


@register("aten::stack")
def stack(call: Call) -> None:
    """Along a new axis."""
    axis = call["dim"] % call.out.dim()
    call.set(call.out, labels.join([labels.insert(call.labels(x), axis) for x in call["tensors"]], axis))


@register("aten::expand", "aten::expand_copy")
def expand(call: Call) -> None:
    """Axes of one entry repeated."""
    call.set(call.out, labels.expand(call.labels(call["self"]), tuple(call.out.shape), call.reason))


@register("aten::repeat")
def repeat(call: Call) -> None:
    """Whole copies one after the other: (copies x axis), row-major; the copies are alike, so they are free."""
    axes = [call.fixed(1)] * (call.out.dim() - call["self"].dim()) + list(call.terms(call["self"]))
    pairs = zip(axes, call["repeats"], strict=True)
    call.set(call.out, [product((free(n), term)) if n != 0 else call.fixed(0) for term, n in pairs])


@register("aten::constant_pad_nd")
def pad(call: Call) -> None:
    """Uniform entries before and behind; a negative amount cuts."""
    made, axis = call.labels(call["self"]), call.out.dim()
    for before, behind in zip(call["pad"][::2], call["pad"][1::2], strict=True):
        axis -= 1
        kept = made.shape[axis] + min(0, before) + min(0, behind)
        made, origins = labels.narrow(made, axis, max(0, -before), kept, call.reason)
        call.slices(origins)
        if before > 0 or behind > 0:
            axes = list(labels.terms(made, call.reason))
            axes[axis] = concatenation((free(max(0, before)), axes[axis], free(max(0, behind))))
            made = Labels(tuple(axes))
    call.set(call.out, made)


@register("aten::view_as_real", "aten::view_as_real_copy")
def view_as_real(call: Call) -> None:
    """A complex number as two real ones, along a new last axis."""
    call.set(call.out, (*call.terms(call["self"]), call.fixed(2)))


@register("aten::view_as_complex", "aten::view_as_complex_copy")
def view_as_complex(call: Call) -> None:
    """The last axis, of two, as one complex number."""
    terms = call.terms(call["self"])
    call.fix(terms[-1:])
    call.set(call.out, terms[:-1])


@register("aten::diagonal", "aten::diagonal_copy")
def diagonal(call: Call) -> None:
    """Entries where two axes stand alike; along the result, which comes last."""
    x = call["self"]
    terms = list(call.terms(x))
    a, b = call["dim1"] % x.dim(), call["dim2"] % x.dim()
    size = call.out.shape[-1]
    if call["offset"] == 0 and x.shape[a] == x.shape[b]:
        call.unify(terms[a], terms[b])
        last = terms[a]
    else:
        call.fix((terms[a], terms[b]))
        last = call.fixed(size)
    call.set(call.out, [*(term for i, term in enumerate(terms) if i not in (a, b)), last])


@register("aten::diag_embed")
def diag_embed(call: Call) -> None:
    """The last axis along the diagonal of two new ones."""
    terms = list(call.terms(call["self"]))
    last = terms.pop()
    if call["offset"] != 0:
        call.fix((last,))
    rank = call.out.dim()
    for axis in sorted((call["dim1"] % rank, call["dim2"] % rank)):
        terms.insert(axis, last if call["offset"] == 0 else fixed(call.out.shape[axis], call.reason))
    call.set(call.out, terms)


@register("aten::flip", "aten::fliplr", "aten::flipud", "aten::roll", "aten::rot90")
def reorder(call: Call) -> None:
    """Entries change places along some axes."""
    x = call["self"]
    dims: Sequence[int] = call["dims"] if "dims" in call else range(x.dim())
    chosen = {axis % x.dim() for axis in dims or range(x.dim())}
    terms = call.terms(x)
    call.fix(terms[axis] for axis in chosen)
    call.mixes((terms[a] for a in chosen), [term for a, term in enumerate(terms) if a not in chosen])
    if call.out.shape == x.shape and not (call.func._schema.name == "aten::roll" and not dims):
        call.set(call.out, terms)
    else:
        call.fix(terms)
        call.set(call.out, [call.fixed(size) for size in call.out.shape])
