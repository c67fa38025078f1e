"""The lines of random programs that compute: each writer looks at what a program holds, and writes a line or a few.

A writer takes a `Builder` and returns text. It need not see to it that the text works: what raises is thrown away. The
patterns are those of real networks, and beside them whatever PyTorch lets one do. tracing_moves.py has the lines that
move entries about and write in place.
"""

from __future__ import annotations

import itertools

from benchmark.tracing_programs import ZEROS, Builder, NoLine, weight


def first_lines(b: Builder) -> None:
    """Inputs, and a first hidden layer for some of them."""
    batch = b.rng.choice((2, 3))
    shapes = [(batch, b.size()), (batch, b.size(), b.size()), (batch, b.size(), 4, 4)]
    for shape in itertools.islice(b.rng.sample(shapes, 3), b.rng.choice((1, 1, 2))):
        x = b.add_input(*shape)
        n = b.size()
        if len(shape) == 4:
            b.execute(f"{b.new()} = F.conv2d({x}, {b.parameter(n, shape[1], 3, 3)}, {b.parameter(n)}) * 0.3")
        else:
            b.execute(f"{b.new()} = torch.tanh(F.linear({x}, {b.parameter(n, shape[-1])}, {b.parameter(n)}))")
    for _ in range(b.rng.choice((0, 0, 1))):
        b.execute(f"{b.new()} = {b.parameter(*(b.size() for _ in range(b.rng.choice((1, 2, 3)))))} * 1.0")


# --- products with parameters ----------------------------------------------------------------------------------------


@weight(8)
def linear(b: Builder) -> str:
    v, n = b.pick(1), b.size()
    bias = b.parameter(n) if b.coin() else "None"
    return f"{b.new()} = F.linear({v}, {b.parameter(n, b.shape(v)[-1])}, {bias})"


@weight(3)
def residual(b: Builder) -> str:
    v = b.pick(1)
    k, n = b.shape(v)[-1], b.size()
    inner = f"torch.tanh(F.linear({v}, {b.parameter(n, k)}, {b.parameter(n)}))"
    return f"{b.new()} = {v} + F.linear({inner}, {b.parameter(k, n)})"


@weight(5)
def einsum(b: Builder) -> str:
    v = b.pick(1, 4)
    letters = "abcdefgh"[: len(b.shape(v))]
    sizes = dict(zip(letters, b.shape(v), strict=True))
    mine = b.rng.sample(letters, b.rng.randint(1, min(3, len(letters))))
    for extra in "xy"[: b.rng.randint(0, 2)]:
        sizes[extra] = b.size()
        mine.append(extra)
    b.rng.shuffle(mine)
    if b.coin(0.2) and (others := [w for w in b.names(1, 3) if len(set(b.shape(w)) & set(b.shape(v)))]):
        w = b.rng.choice(others)
        mine = [b.rng.choice([c for c in letters if sizes[c] == n] or [f"{i}"]) for i, n in enumerate(b.shape(w))]
        mine = [c if c.isalpha() else "uvwz"[int(c)] for c in mine]
    else:
        w = b.parameter(*(sizes[c] for c in mine))
    every = list(dict.fromkeys((*letters, *mine)))
    out = b.rng.sample(every, b.rng.randint(max(1, len(every) - 2), min(4, len(every))))
    return f'{b.new()} = torch.einsum("{letters},{"".join(mine)}->{"".join(out)}", {v}, {w}) * 0.5'


@weight(3)
def matmul(b: Builder) -> str:
    v = b.pick(2)
    shape = b.shape(v)
    fits = [w for w in b.names(2) if b.shape(w)[-2] == shape[-1]]
    alike = [w for w in b.names(2) if b.shape(w)[-1] == shape[-1]]
    if fits and b.coin():
        return f"{b.new()} = {v} @ {b.rng.choice(fits)} * 0.5"
    if alike and b.coin(0.7):
        return f"{b.new()} = {v} @ {b.rng.choice(alike)}.transpose(-1, -2) * 0.5"
    return f"{b.new()} = {v} @ {b.parameter(*shape[:-2], shape[-1], b.size())}"


@weight(3)
def convolution(b: Builder) -> str:
    v = b.pick(3, 4)
    channels, rank = b.shape(v)[1], len(b.shape(v)) - 2
    groups = b.rng.choice([g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0])
    taps = (b.rng.choice((1, 1, 3)),) * rank
    per = b.rng.choice((1, 2, 3))
    if b.coin(0.25):
        w = b.parameter(channels, per, *taps)
        return f"{b.new()} = F.conv_transpose{rank}d({v}, {w}, {b.parameter(per * groups)}, groups={groups}) * 0.5"
    w = b.parameter(per * groups, channels // groups, *taps)
    bias = b.parameter(per * groups) if b.coin() else "None"
    more = f"padding={taps[0] // 2}, stride={b.rng.choice((1, 1, 2))}"
    return f"{b.new()} = F.conv{rank}d({v}, {w}, {bias}, {more}, groups={groups}) * 0.5"


@weight(2)
def attention(b: Builder) -> str:
    """Query, key and value from one projection, taken apart in one of the usual ways."""
    v = b.pick(3, 3)
    n, t, k = b.shape(v)
    heads, d = b.rng.choice((1, 2, 3)), b.rng.choice((2, 3))
    q, key, value, both, out = (b.new() for _ in range(5))
    lines = [f"{both} = F.linear({v}, {b.parameter(3 * heads * d, k)}, {b.parameter(3 * heads * d)})"]
    form = b.rng.randrange(4)
    if form == 0:
        lines.append(f"{q}, {key}, {value} = {both}.reshape({n}, {t}, 3, {heads}, {d}).permute(2, 0, 3, 1, 4)")
    elif form == 1:
        lines.append(f"{q}, {key}, {value} = {both}.reshape({n}, {t}, {heads}, 3, {d}).transpose(1, 2).unbind(3)")
    elif form == 2:
        parts = [f"{both}[..., {i * heads * d}:{(i + 1) * heads * d}]" for i in range(3)]
        parts = [f"{part}.reshape({n}, {t}, {heads}, {d}).transpose(1, 2)" for part in parts]
        lines.append(f"{q}, {key}, {value} = {', '.join(parts)}")
    else:
        lines.append(
            f"{q}, {key}, {value} = (u.reshape({n}, {t}, {heads}, {d}).transpose(1, 2) for u in {both}.chunk(3, -1))"
        )
    if b.coin():
        lines.append(f"{out} = F.scaled_dot_product_attention({q}, {key}, {value}, is_causal={b.coin(0.3)})")
    else:
        lines.append(
            f"{out} = torch.softmax({q} @ {key}.transpose(-1, -2) / 2, {b.rng.choice((-1, -1, -2))}) @ {value}"
        )
    merged = f"{out}.transpose(1, 2).reshape({n}, {t}, {heads * d})"
    lines.append(f"{b.new()} = F.linear({merged}, {b.parameter(b.size(), heads * d)})")
    return "\n".join(lines)


@weight(1.5)
def recurrence(b: Builder) -> str:
    """A plain or gated cell in a loop over the second axis."""
    v = b.pick(3, 3)
    n, steps, k = b.shape(v)
    width = b.rng.choice((2, 3))
    gates = b.rng.choice((1, 2, 3))
    h, w, u, all_, gated = b.new(), b.parameter(gates * width, k), b.parameter(gates * width, width), b.new(), b.new()
    start = ZEROS.format((n, width)) if b.coin(0.7) else f"{b.parameter(width)}.expand({n}, -1)"
    order = f"range({steps})" if b.coin(0.7) else f"reversed(range({steps}))"
    cell = {
        1: f"torch.tanh({gated}[0])",
        2: f"torch.sigmoid({gated}[0]) * {h} + torch.tanh({gated}[1])",
        3: f"torch.sigmoid({gated}[0]) * {h} + torch.sigmoid({gated}[1]) * torch.tanh({gated}[2])",
    }[gates]
    kept = f"{b.new()} = torch.stack({all_}, {b.rng.choice((0, 1, 2))})" if b.coin() else f"{b.new()} = {h} * 1.0"
    return (
        f"{h}, {all_} = {start}, []\n"
        f"for t in {order}:\n"
        f"    {gated} = (F.linear({v}[:, t], {w}) + F.linear({h}, {u})).chunk({gates}, -1)\n"
        f"    {h} = {cell}\n"
        f"    {all_}.append({h})\n"
        f"{kept}"
    )


@weight(1)
def experts(b: Builder) -> str:
    """Dense experts: their weights lie in one parameter, or are stacked."""
    v = b.pick(2, 2)
    k, e, n = b.shape(v)[-1], b.rng.choice((2, 3)), b.size()
    apart = ", ".join(b.parameter(n, k) for _ in range(e))
    w = b.parameter(e, n, k) if b.coin() else f"torch.stack([{apart}])"
    h, gate = b.new(), f"torch.softmax(F.linear({v}, {b.parameter(e, k)}), -1)"
    second = f'torch.einsum("bei,eoi->beo", {h}, {b.parameter(e, b.size(), n)})'
    return f'{h} = torch.tanh(torch.einsum("bk,enk->ben", {v}, {w}))\n{b.new()} = ({second} * {gate}[..., None]).sum(1)'


# --- entry by entry --------------------------------------------------------------------------------------------------

UNARY = (
    "torch.tanh({})", "torch.sin({})", "torch.sigmoid({})", "F.gelu({})", "F.relu({})", "F.silu({})", "F.softplus({})",
    "F.leaky_relu({}, 0.1)", "{}.abs()", "torch.exp(-{}.square())", "{}.clamp(-1, 1)", "F.elu({})", "{} * 0.5",
    "1.0 - {}", "F.hardswish({})", "F.logsigmoid({})", "{}.clone()", "{}.contiguous()", "torch.atan2({}, {} + 3)",
    "torch.where({0} > 0, {0}, 0.3)", "{0}.masked_fill({0} < 0.1, 0.2)", "({0} > 0) * {0}",
)  # fmt: skip


@weight(7)
def unary(b: Builder) -> str:
    v = b.pick()
    return f"{b.new()} = {b.rng.choice(UNARY).format(v, v)}"


BINARY = (
    "{} + {}", "{} * {}", "{} - {}", "torch.maximum({}, {})", "torch.where({0} > 0, {1}, {0})",
    "torch.lerp({}, {}, 0.3)", "torch.addcmul({0}, {1}, {1})", "torch.hypot({0} + 4, {1})",
)  # fmt: skip


@weight(7)
def binary(b: Builder) -> str:
    """Operands of one shape, or that broadcast against each other."""
    v = b.pick()
    shape = b.shape(v)

    def fits(other: tuple[int, ...]) -> bool:
        pairs = zip(reversed(shape), reversed(other), strict=False)
        return len(other) > 0 and all(n == m or 1 in (n, m) for n, m in pairs)

    others = [w for w in b.names() if w != v and fits(b.shape(w))]
    if not others:
        raise NoLine
    pair = [v, b.rng.choice(others)]
    b.rng.shuffle(pair)
    return f"{b.new()} = {b.rng.choice(BINARY).format(*pair)}"


@weight(4)
def with_parameter(b: Builder) -> str:
    """A parameter along some axes."""
    v = b.pick(1)
    shape = b.shape(v)
    kept = shape[b.rng.randrange(len(shape)) :]
    own = [n if b.coin(0.7) else 1 for n in kept]
    return f"{b.new()} = {v} {b.rng.choice('+*')} {b.parameter(*own)}"


# --- normalisation and reduction -------------------------------------------------------------------------------------


@weight(3)
def norm(b: Builder) -> str:
    v, out = b.pick(2), b.new()
    shape = b.shape(v)
    last = shape[-b.rng.choice((1, 1, 2)) :]
    c = shape[1]
    affine = f"{b.parameter(c)}, {b.parameter(c)}"
    groups = b.rng.choice([g for g in (1, 2, 3, c) if c % g == 0])
    dims = b.rng.sample(range(len(shape)), 1)
    return b.rng.choice(
        [
            f"{out} = F.layer_norm({v}, {last}, {b.parameter(*last)}, {b.parameter(*last)}, 1e-2)",
            f"{out} = F.layer_norm({v}, {last}, eps=1e-2)",
            f"{out} = F.rms_norm({v}, {last}, {b.parameter(*last)}, 1e-2)",
            f"{out} = F.group_norm({v}, {groups}, {affine}, 1e-2)",
            f"{out} = F.batch_norm({v}, None, None, {affine}, True, 0.1, 1e-2)",
            f"{out} = {v} / (1 + {v}.norm(dim={dims}, keepdim=True))",
            f"{out} = {v} - {v}.mean({dims}, keepdim=True)",
        ]
    )


@weight(3)
def softmax(b: Builder) -> str:
    v = b.pick(1)
    name = b.rng.choice(("softmax", "softmax", "log_softmax"))
    return f"{b.new()} = torch.{name}({v}, {b.axis(v)}){' * 0.3' if name.startswith('log') else ''}"


REDUCTIONS = (
    "{}.sum({}, keepdim={}) * 0.5", "{}.mean({}, keepdim={})", "{}.amax({}, keepdim={})", "{}.amin({}, keepdim={})",
    "{}.logsumexp({}, keepdim={})", "({}.square() + 0.1).sum({}, keepdim={}).sqrt()",
)  # fmt: skip


@weight(3)
def reduction(b: Builder) -> str:
    v = b.pick(1)
    axes = b.rng.sample(range(len(b.shape(v))), b.rng.randint(1, min(2, len(b.shape(v)))))
    return f"{b.new()} = {b.rng.choice(REDUCTIONS).format(v, axes, b.coin())}"


@weight(0.6)
def odd_reduction(b: Builder) -> str:
    v = b.pick(1)
    a = b.axis(v)
    form = b.rng.choice(("{v}.max({a})[0]", "{v}.var({a}, correction=0)", "{v}.tanh().prod({a})", "{v}.median({a})[0]"))
    return f"{b.new()} = {form.format(v=v, a=a)}"


ORDERED = (
    "{v}.cumsum({a}) * 0.5", "{v}.sort({a})[0]", "{v}.flip({a})", "{v}.roll(1, {a})", "{v}.topk(1, {a})[0]",
    "{v}.argsort({a}).to({v}) * 0.2", "{v}.argmax({a}).to({v}) * 0.2", "{v}.tanh().cumprod({a})", "{v}.cummax({a})[0]",
    "{v}.logcumsumexp({a})", "{v}.argmax({a}, keepdim=True) * {v} * 0.2", "torch.triu({v})",
    "torch.fft.rfft({v}, dim={a}).abs()", "{v}.unfold({a}, 2, 1)", "{v}.diff(dim={a})", "{v}.kthvalue(1, {a})[0]",
)  # fmt: skip


@weight(1)
def ordered(b: Builder) -> str:
    v = b.pick(1)
    return f"{b.new()} = {b.rng.choice(ORDERED).format(v=v, a=b.axis(v))}"
