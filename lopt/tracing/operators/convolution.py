"""Convolutions: the channels are contracted, space and the kernel's taps keep their order."""

from __future__ import annotations

from lopt.tracing.algebra import Term, concatenation, find, free, product, unify
from lopt.tracing.call import Call
from lopt.tracing.operators.contraction import contract
from lopt.tracing.registry import register
from lopt.verification.tensor_tree import tensors_in


@register("aten::convolution", "aten::_convolution", "aten::convolution_overrideable", "aten::mkldnn_convolution")
@register("aten::cudnn_convolution", "aten::cudnn_convolution_transpose", "aten::_slow_conv2d_forward")
def convolution(call: Call) -> None:
    """(n, c_in, *space) with (c_out, c_in / groups, *taps), or (c_in, c_out / groups, *taps) transposed.

    With groups, c_in = groups x i and c_out = groups x o: a group's channels move within it, and the groups as wholes.
    """
    transposed = call.get("transposed") or "transpose" in call.func._schema.name
    x, weight = call.terms(call["input" if "input" in call else "self"]), call.terms(call["weight"])
    (n, channels, *space), (rows, columns, *taps) = x, weight
    count = call.get("groups", 1)
    groups, per_group = free(count), find(rows).size // count
    inner = columns if transposed else free(per_group)
    rest = free(per_group) if transposed else columns
    call.unify(rows, product((groups, rest if transposed else inner)))
    call.unify(channels, product((groups, rest)))
    call.aligned((n, groups, rest))
    call.fix(taps)
    out_channels = product((groups, inner))
    if call.get("bias") is not None:
        call.unify(call.terms(call["bias"])[0], out_channels)
    places = _space(call, space, taps)
    call.mixes((rest, *taps), (n, groups, inner, *places))
    call.set(call.out, (n, out_channels, *places))


def _space(call: Call, space: list[Term], taps: list[Term]) -> list[Term]:
    """A kernel of one tap that steps by one leaves every place by itself; any other one fixes them."""
    sizes = call.out.shape[2:]
    plain = all(find(tap).size == 1 for tap in taps) and _all_ones(call, "stride") and not any(call["padding"])
    if plain and tuple(find(axis).size for axis in space) == tuple(sizes):
        return space
    call.fix(space)
    return [call.fixed(size) for size in sizes]


def _all_ones(call: Call, name: str) -> bool:
    return all(value == 1 for value in call[name])


@register("aten::mkldnn_rnn_layer")
def lstm_layer(call: Call) -> None:
    """One direction of one LSTM layer, (t, b, i) -> (t, b, h): four gates stand one after the other."""
    t, b, i = call.terms(call["input"])
    states = [call.terms(call[name]) for name in ("hx_", "cx_")]
    hidden = states[0][-1]
    gates = concatenation([hidden] * 4)
    call.unify(states[1][-1], hidden)
    for name, columns in (("weight0", i), ("weight1", hidden), ("weight2", None), ("weight3", None)):
        terms = call.terms(call[name])
        if find(terms[0]).size == gates.size:  # biases may be left out
            unify(terms[0], gates, call.reason)
            if columns is not None:
                contract(call, [columns], [terms[1]], (t, b, hidden))
    call.fix((t,))
    out, *states_out = call.out
    call.set(out, (t, b, hidden))
    for x in tensors_in(states_out):  # the last states, and a workspace
        lead = [call.fixed(size) for size in x.shape]
        call.set(x, [*lead[:-2], b, hidden] if x.shape[-1:] == out.shape[-1:] else lead)
