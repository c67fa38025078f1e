"""The lines of random programs that move entries about: views, slices, joins, indexing, constants, writing in place.

Written as tracing_lines.py writes those that compute.
"""

from __future__ import annotations

import math

from benchmark.tracing_programs import ZEROS, Builder, NoLine, weight


@weight(5)
def reshape(b: Builder) -> str:
    """Two axes become one, one becomes two, or (rarely) another shape altogether."""
    v = b.pick(1)
    shape = list(b.shape(v))
    form = b.rng.random()
    divisible = [(i, d) for i, n in enumerate(shape) for d in range(2, n) if n % d == 0]
    if form < 0.45 and len(shape) > 1:
        i = b.rng.randrange(len(shape) - 1)
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    elif form < 0.9 and divisible:
        i, d = b.rng.choice(divisible)
        shape[i : i + 1] = [d, shape[i] // d]
    else:
        total = math.prod(shape)
        first = b.rng.choice([d for d in range(1, total + 1) if total % d == 0])
        shape = [first, total // first]
    return f"{b.new()} = {v}.reshape({shape})"


@weight(4)
def permute(b: Builder) -> str:
    v = b.pick(2)
    order = list(range(len(b.shape(v))))
    b.rng.shuffle(order)
    if b.coin():
        return f"{b.new()} = {v}.permute({order})"
    return f"{b.new()} = {v}.transpose({order[0]}, {order[1]})"


@weight(1.5)
def shuffle(b: Builder) -> str:
    """Channels by groups, transposed."""
    v = b.pick(1)
    shape, a = b.shape(v), b.axis(v)
    g = b.rng.choice([d for d in range(1, shape[a] + 1) if shape[a] % d == 0])
    inner = (*shape[:a], g, shape[a] // g, *shape[a + 1 :])
    return f"{b.new()} = {v}.reshape({inner}).transpose({a}, {a + 1}).reshape({shape})"


@weight(4)
def cut(b: Builder) -> str:
    """Parts of an axis."""
    v = b.pick(1)
    a = b.axis(v)
    n = b.shape(v)[a]
    out, k = b.new(), b.rng.randrange(max(1, n))
    lead = ":, " * a
    return b.rng.choice(
        [
            f"{out}, {b.new()} = {v}.split([{k}, {n - k}], {a})",
            f"{out} = {v}.narrow({a}, {k}, {b.rng.randint(1, max(1, n - k))})",
            f"{out} = {v}.select({a}, {k})",
            f"{out} = {v}[{lead}{b.rng.choice((0, 0, 1))}::{b.rng.choice((2, 2, 3))}]",
            f"{out} = {v}[{lead}{k}:]",
            f"{', '.join([out, *(b.new() for _ in range(n - 1))])}, = {v}.unbind({a})",
            f"{out}, {b.new()} = {v}.chunk(2, {a})",
            f"{out} = F.glu({v}, {a})",
            f"{out} = torch.cat({v}.chunk(2, {a})[::-1], {a})",
        ]
    )


@weight(4)
def join(b: Builder) -> str:
    """Values one after the other, or along a new axis; with constants among them."""
    v = b.pick(1)
    shape, a = b.shape(v), b.axis(v)
    alike = [
        w for w in b.names(len(shape), len(shape)) if b.shape(w)[:a] + b.shape(w)[a + 1 :] == shape[:a] + shape[a + 1 :]
    ]
    parts = [v, *b.rng.sample(alike, b.rng.randint(0, min(2, len(alike))))]
    if len(parts) == 1 or b.coin(0.2):
        parts.append(b.rng.choice((f"torch.zeros_like({v})", f"torch.ones_like({v})", b.parameter(*shape))))
    b.rng.shuffle(parts)
    same = all(b.shape(p) == shape for p in parts if p in b.tensors)
    if same and b.coin(0.5):
        return f"{b.new()} = torch.stack([{', '.join(parts)}], {b.rng.randrange(len(shape) + 1)})"
    return f"{b.new()} = torch.cat([{', '.join(parts)}], {a})"


@weight(2)
def spread(b: Builder) -> str:
    """Copies, padding, new axes."""
    v = b.pick(1)
    shape, a, out, n = b.shape(v), b.axis(v), b.new(), b.rng.choice((2, 3))
    wide = [-1] * (len(shape) + 1)
    wide[a] = n
    times = [1] * len(shape)
    times[a] = n
    before, behind = b.rng.choice(((1, 1), (0, 1), (2, 0), (-1, 0), (1, -1)))
    return b.rng.choice(
        [
            f"{out} = {v}.unsqueeze({a}).expand({wide})",
            f"{out} = {v}.repeat({times})",
            f"{out} = {v}.repeat_interleave({n}, {a})",
            f"{out} = {v}.unsqueeze({b.rng.randrange(len(shape) + 1)})",
            f"{out} = F.pad({v}, {(0, 0) * (len(shape) - 1 - a) + (before, behind)}, value={b.rng.choice((0.0, 0.5))})",
            f"{out} = {v}.sum({a}, keepdim=True).expand({list(shape)}) * 0.5",
            f"{out} = {v}.squeeze()",
        ]
    )


@weight(1.5)
def indexed(b: Builder) -> str:
    """Entries at constant places, or at places that values decide."""
    v = b.pick(1)
    shape, a, out = b.shape(v), b.axis(v), b.new()
    if shape[a] < 2:
        raise NoLine  # whether place 1 is asked for depends on the values
    places = [b.rng.randrange(max(1, shape[a])) for _ in range(b.rng.randint(1, 3))]
    signs = f"({v} > 0).long()"
    lead = ":, " * a
    return b.rng.choice(
        [
            f"{out} = {v}.index_select({a}, torch.tensor({places}))",
            f"{out} = {v}[{lead}torch.tensor({places})]",
            f"{out} = {v}[{lead}{places}]",
            f"{out} = {v}.gather({a}, {signs})",
            f"{out} = {v}.gather({a}, {v}.argsort({a}))",
            f"{out} = {v}.scatter_add({a}, {signs}, {v})",
            f"{out} = torch.zeros_like({v}).scatter({a}, {signs}, {v})",
            f"{out} = F.embedding(torch.tensor({[p % 2 for p in places]}), {b.parameter(3, b.size())})",
            f"{out} = F.embedding({signs}, {b.parameter(2, b.size())})",
            f"{out} = torch.zeros_like({v}).index_add({a}, torch.arange({shape[a]}).flip(0), {v})",
            f"{out} = {v}[{v} > 0].sum()",
            f"{out} = torch.take_along_dim({v}, {v}.argmax({a}, keepdim=True), {a})",
        ]
    )


@weight(1)
def matrix(b: Builder) -> str:
    """What is done to two axes at once."""
    v = b.pick(2, 4)
    out, other = b.new(), b.rng.choice(b.names(2, 3) or [v])
    return b.rng.choice(
        [
            f"{out} = {v}.diagonal(0, -2, -1)",
            f"{out} = torch.diag_embed({v})",
            f"{out} = torch.cdist({v}, {v})",
            f"{out} = torch.cdist({v}, {other})",
            f"{out} = {v} @ {v}.transpose(-1, -2) * 0.3",
            f"{out} = F.bilinear({v}, {v}, {b.parameter(2, b.shape(v)[-1], b.shape(v)[-1])}) * 0.3",
            f"{out} = torch.kron({v}, {other}) * 0.5",
            f"{out} = torch.cov({v})",
            f"{out} = F.pixel_shuffle({v}, 2)",
            f"{out} = F.max_pool1d({v}, 2)",
            f"{out} = F.avg_pool2d({v}, 2)",
            f"{out} = F.adaptive_avg_pool1d({v}, 1)",
            f"{out} = F.interpolate({v}, scale_factor=2)",
            f"{out} = F.unfold({v}, 2)",
            f"{out} = torch._weight_norm({v}, {b.parameter(b.shape(v)[0], *(1 for _ in b.shape(v)[1:]))}, 0)",
            f"{out} = torch.tensordot({v}, {other}, 1) * 0.5",
            f"{out} = torch.view_as_real(torch.complex({v}, {v}.sin()))",
            f"{out} = torch.linalg.vector_norm({v} + 0.1, dim=(-2, -1))",
        ]
    )


# --- constants, and writing in place ---------------------------------------------------------------------------------


@weight(1.5)
def made(b: Builder) -> str:
    """Tensors that are made on the way; used at once, or left for others to write into."""
    v, out = b.pick(1), b.new()
    shape = b.shape(v)
    return b.rng.choice(
        [
            f"{out} = {ZEROS.format(shape)}",
            f"{out} = torch.ones({shape}, dtype=torch.float64)",
            f"{out} = torch.full_like({v}, 0.3)",
            f"{out} = {v}.new_zeros({(*shape[:-1], b.size())})",
            f"{out} = {v} + torch.arange({shape[-1]}) * 0.1",
            f"{out} = {v} * torch.eye({shape[-1]}, dtype=torch.float64)[0]",
            f"{out} = {v} @ torch.eye({shape[-1]}, dtype=torch.float64)",
            f"{out} = {v} + torch.ones({shape[-1]}, dtype=torch.float64).cumsum(0)",
            f"{out} = {v} * torch.linspace(0, 1, {shape[0]}).reshape({[-1] + [1] * (len(shape) - 1)})",
        ]
    )


@weight(4)
def in_place(b: Builder) -> str:
    """Into a value that is there, or into a part of it, which other names may share."""
    v = b.rng.choice([w for w in b.names(1) if w.startswith("v")] or [""])
    if not v:
        raise NoLine
    shape, a = b.shape(v), b.axis(v)
    n, lead = shape[a], ":, " * a
    k, out = b.rng.randrange(max(1, n)), b.new()
    alike = [w for w in b.names() if b.shape(w) == shape] or [v]
    rest = shape[:a] + shape[a + 1 :]
    rows = [w for w in b.names() if b.shape(w) == rest] or [b.parameter(*rest)]
    w, row, zeros = b.rng.choice(alike), b.rng.choice(rows), ZEROS.format(shape)
    return b.rng.choice(
        [
            f"{v}.add_({w})",
            f"{v}.mul_({w})",
            f"{v}.tanh_()",
            f"{v}.copy_({w})",
            f"{v}[{lead}{k}] = {row}",
            f"{v}[{lead}{k}].add_({row})",
            f"{v}[{lead}:{k}] += {w}[{lead}:{k}]",
            f"{v}[{lead}::2] = {w}[{lead}::2] * 0.5",
            f"{v}.select({a}, {k}).zero_()",
            f"{v}.masked_fill_({w} > 0.2, 0.1)",
            f"{v}.clamp_(-1, 1)",
            f"{v}.index_add_({a}, torch.tensor([{k}]), {row}.unsqueeze({a}))",
            f"{v}[{lead}torch.tensor([{k}, 0])] = {row}.unsqueeze({a})",
            f"{v}.transpose_({a}, {len(shape) - 1})",
            f"{out} = {zeros}\n{out}[{lead}:{k}] = {w}[{lead}:{k}]",
            f"{out} = {zeros}\n{out}[{lead}{k}] = {row}",
            f"{out} = {zeros}\nfor i in range({n}):\n    {out}[{lead}i] = {row} * (i + 1)",
            f"{out} = {zeros}.new_empty({shape})\n{out}[{lead}:{k}] = 0.5\n{out}[{lead}{k}:] = {w}[{lead}{k}:]",
        ]
    )
