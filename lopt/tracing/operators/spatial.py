"""Operators over space that leave batch and channels alone: pooling, resampling, padding, Fourier transforms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lopt.tracing.algebra import Term, find, free, product
from lopt.tracing.call import Call
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


def spatial(call: Call, x: Tensor, axes: Iterable[int]) -> None:
    """These axes keep their order; the others are as they were, in all tensors (places to unpool to, samples)."""
    terms = list(call.terms(x))
    chosen = {axis % x.dim() for axis in axes}
    call.fix(terms[axis] for axis in chosen)
    for other in (t for t in call.tensors if t is not x):
        for axis, (term, own) in enumerate(zip(call.terms(other), terms, strict=False)):
            if axis in chosen or find(term).size != find(own).size:
                call.fix((term,))
            else:
                call.unify(term, own)
    call.mixes([terms[axis] for axis in chosen], [t for axis, t in enumerate(terms) if axis not in chosen])
    for out in tensors_in(call.out):
        call.set(out, [call.fixed(out.shape[a]) if a in chosen else term for a, term in enumerate(terms)])


def _last(count: int) -> range:
    return range(-count, 0)


def _register_all() -> None:
    """An operator's name tells how many axes of space it has."""
    pools = ("max_pool{}d_with_indices", "avg_pool{}d", "adaptive_max_pool{}d", "_adaptive_avg_pool{}d")
    pads = ("reflection_pad{}d", "replication_pad{}d", "mkldnn_max_pool{}d", "max_pool{}d", "adaptive_avg_pool{}d")
    more = ("fractional_max_pool{}d", "max_unpool{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d")
    for count in (1, 2, 3):
        names = [f"aten::{name.format(count)}" for name in (*pools, *pads, *more)]
        register(*names)(lambda call, count=count: spatial(call, call.tensors[0], _last(count)))
    for name, count in (("linear1d", 1), ("bilinear2d", 2), ("bicubic2d", 2), ("trilinear3d", 3)):
        names = (f"aten::upsample_{name}", f"aten::_upsample_{name}_aa")
        register(*names)(lambda call, count=count: spatial(call, call.tensors[0], _last(count)))
    register("aten::triu", "aten::tril", "aten::triu_", "aten::tril_")(
        lambda call: spatial(call, call["self"], _last(2))
    )


_register_all()


@register("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c")
def fft(call: Call) -> None:
    """Frequencies keep their order."""
    spatial(call, call["self"], call["dim"])


@register("aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::_grid_sampler_2d_cpu_fallback")
def grid_sampler(call: Call) -> None:
    """(n, c, *space) read at the places (n, *out_space, 2 or 3), where the batch and the space out may move."""
    batch, channels, *space = call.terms(call["input"])
    batch2, *places, coordinates = call.terms(call["grid"])
    call.unify(batch, batch2)
    call.fix((*space, coordinates))
    call.mixes(space, (batch, channels))
    call.set(call.out, (batch, channels, *places))


@register("aten::im2col")
def im2col(call: Call) -> None:
    """(n, c, h, w) -> (n, c x taps, places)."""
    _unfolded(call, inward=True)


@register("aten::col2im")
def col2im(call: Call) -> None:
    """(n, c x taps, places) -> (n, c, h, w)."""
    _unfolded(call, inward=False)


def _unfolded(call: Call, inward: bool) -> None:
    terms = list(call.terms(call["self"]))
    taps = 1
    for size in call["kernel_size"]:
        taps *= size
    lead = len(terms) - (3 if inward else 2)
    if inward:
        call.fix(terms[lead + 1 :])
        axes: list[Term] = [*terms[:lead], _times(call, terms[lead], taps), call.fixed(call.out.shape[-1])]
    else:
        call.fix(terms[lead + 1 :])
        axes = [*terms[:lead], _over(call, terms[lead], taps), *(call.fixed(n) for n in call.out.shape[lead + 1 :])]
    call.set(call.out, axes)


def _times(call: Call, channels: Term, taps: int) -> Term:
    return product((channels, call.fixed(taps)))


def _over(call: Call, whole: Term, taps: int) -> Term:
    channels = free(find(whole).size // taps)
    call.unify(whole, product((channels, call.fixed(taps))))
    return channels


@register("aten::unfold", "aten::unfold_copy")
def unfold(call: Call) -> None:
    """Windows of an axis, along a new last axis."""
    x = call["self"]
    axis = call["dimension"] % max(1, x.dim())
    terms = list(call.terms(x))
    call.fix(terms[axis : axis + 1])
    axes = [call.fixed(call.out.shape[a]) if a == axis else term for a, term in enumerate(terms)]
    call.set(call.out, [*axes, call.fixed(call.out.shape[-1])])


@register("aten::native_channel_shuffle", "aten::channel_shuffle")
def channel_shuffle(call: Call) -> None:
    """(groups x c) -> (c x groups)."""
    terms = list(call.terms(call["self"]))
    groups = free(call["groups"])
    rest = free(find(terms[1]).size // call["groups"])
    call.unify(terms[1], product((groups, rest)))
    call.set(call.out, [terms[0], product((rest, groups)), *terms[2:]])
