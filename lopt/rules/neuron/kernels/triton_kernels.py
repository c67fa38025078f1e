"""The arithmetic of passes.py on a GPU, in Triton: each kernel runs once a step, over the parts of all tensors.

A part is up to ROWS rows of one matrix of one tensor; a program walks along its columns. Sums over rows and over parts
are taken in a fixed order, by kernels of their own, so that two runs give the same bits. Nothing waits for the device.

This module needs the package triton; gpu.py imports it where that is there. A part is a row of FIELDS numbers:

    tensor; rows; columns; where among the tensor's weights; among the row entries; among the column entries; where its
    own sums over its rows begin; where its update begins

Legend: P parts, T tensors, E entries without those of the tensors, E_r row entries, E_c column entries.
"""
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

from importlib import import_module
from typing import Any

triton: Any = import_module("triton")
tl: Any = import_module("triton.language")

DTYPES = {"torch.float32": tl.float32, "torch.bfloat16": tl.bfloat16, "torch.float16": tl.float16}


@triton.jit
def advance(
    parts,  # [P, FIELDS]
    table,  # [6, T]: addresses of g, m, s, v, w; the code of the dtype of g and w
    n_tensors,
    gain_m,
    gain_s,
    gain_v,
    sums,  # [MOMENTS, E]
    n_entries,
    beside,
    code,
    dtype: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first pass, of the parts whose tensors have this dtype; their sums over columns."""
    part = parts + tl.program_id(0).to(tl.int64) * FIELDS
    tensor = tl.load(part)
    if tl.load(table + 5 * n_tensors + tensor) == code:
        n_rows, n = tl.load(part + 1).to(tl.int32), tl.load(part + 2).to(tl.int32)
        first, row, over = tl.load(part + 3), tl.load(part + 4), tl.load(part + 6)
        g_at = tl.load(table + tensor).to(tl.pointer_type(dtype)) + first
        m_at = tl.load(table + n_tensors + tensor).to(tl.pointer_type(tl.float32)) + first
        s_at = tl.load(table + 2 * n_tensors + tensor).to(tl.pointer_type(tl.float32)) + first
        v_at = tl.load(table + 3 * n_tensors + tensor).to(tl.pointer_type(tl.float32)) + first
        w_at = tl.load(table + 4 * n_tensors + tensor).to(tl.pointer_type(dtype)) + first
        r = tl.arange(0, ROWS)
        gg = tl.zeros((ROWS,), tl.float32)
        mm = tl.zeros((ROWS,), tl.float32)
        ww = tl.zeros((ROWS,), tl.float32)
        vs = tl.zeros((ROWS,), tl.float32)
        gm = tl.zeros((ROWS,), tl.float32)
        ms = tl.zeros((ROWS,), tl.float32)
        sw = tl.zeros((ROWS,), tl.float32)
        mean = tl.zeros((ROWS,), tl.float32)
        for start in range(0, n, BLOCK):
            c = start + tl.arange(0, BLOCK)
            there = (r < n_rows)[:, None] & (c < n)[None, :]
            at = r[:, None] * n + c[None, :]
            g = tl.load(g_at + at, mask=there, other=0.0).to(tl.float32)
            w = tl.load(w_at + at, mask=there, other=0.0).to(tl.float32)
            m = tl.load(m_at + at, mask=there, other=0.0)
            s = tl.load(s_at + at, mask=there, other=0.0)
            v = tl.load(v_at + at, mask=there, other=0.0)
            m += gain_m * (g - m)
            s += gain_s * (g - s)
            v += gain_v * (g * g - v)
            tl.store(m_at + at, m, mask=there)
            tl.store(s_at + at, s, mask=there)
            tl.store(v_at + at, v, mask=there)
            own, inside = beside + over + c, c < n
            tl.store(own, tl.sum(g * g, 0), mask=inside)
            tl.store(own + n, tl.sum(m * m, 0), mask=inside)
            tl.store(own + 2 * n, tl.sum(w * w, 0), mask=inside)
            tl.store(own + 3 * n, tl.sum(v, 0), mask=inside)
            tl.store(own + 4 * n, tl.sum(g * m, 0), mask=inside)
            tl.store(own + 5 * n, tl.sum(m * s, 0), mask=inside)
            tl.store(own + 6 * n, tl.sum(s * w, 0), mask=inside)
            tl.store(own + 7 * n, tl.sum(m, 0), mask=inside)
            gg += tl.sum(g * g, 1)
            mm += tl.sum(m * m, 1)
            ww += tl.sum(w * w, 1)
            vs += tl.sum(v, 1)
            gm += tl.sum(g * m, 1)
            ms += tl.sum(m * s, 1)
            sw += tl.sum(s * w, 1)
            mean += tl.sum(m, 1)
        to = sums + row + r
        tl.store(to, gg, mask=r < n_rows)
        tl.store(to + n_entries, mm, mask=r < n_rows)
        tl.store(to + 2 * n_entries, ww, mask=r < n_rows)
        tl.store(to + 3 * n_entries, vs, mask=r < n_rows)
        tl.store(to + 4 * n_entries, gm, mask=r < n_rows)
        tl.store(to + 5 * n_entries, ms, mask=r < n_rows)
        tl.store(to + 6 * n_entries, sw, mask=r < n_rows)
        tl.store(to + 7 * n_entries, mean, mask=r < n_rows)


@triton.jit
def add_parts(segments, beside, sums, n_entries, MOMENTS: tl.constexpr, BLOCK: tl.constexpr):
    """The sums over rows of BLOCK columns, from those of the parts.

    segments: [programs, 5]: where the sums of the first part begin; parts; columns; the first column of this program;
    where it goes.
    """
    segment = segments + tl.program_id(0) * 5
    begin, count, n = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    first, to = tl.load(segment + 3), tl.load(segment + 4)
    c = first + tl.arange(0, BLOCK)
    for k in range(MOMENTS):
        total = tl.zeros((BLOCK,), tl.float32)
        for part in range(count):
            total += tl.load(beside + begin + (part * MOMENTS + k) * n + c, mask=c < n, other=0.0)
        tl.store(sums + k * n_entries + to + tl.arange(0, BLOCK), total, mask=c < n)


@triton.jit
def combine(
    parts,
    table,
    n_tensors,
    rows,  # [ROWS of combine.py, E_r]
    n_rows_in_all,
    columns,  # [COLUMNS of combine.py, E_c]
    n_columns,
    floor,
    out,
    squares,  # [P]
    code,
    dtype: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The second pass, of the parts whose tensors have this dtype: updates, not yet of RMS 1, and their squares."""
    part = parts + tl.program_id(0).to(tl.int64) * FIELDS
    tensor = tl.load(part)
    if tl.load(table + 5 * n_tensors + tensor) == code:
        n_rows, n = tl.load(part + 1).to(tl.int32), tl.load(part + 2).to(tl.int32)
        first, row = tl.load(part + 3), tl.load(part + 4)
        column, to = tl.load(part + 5), tl.load(part + 7)
        g_at = tl.load(table + tensor).to(tl.pointer_type(dtype)) + first
        m_at = tl.load(table + n_tensors + tensor).to(tl.pointer_type(tl.float32)) + first
        s_at = tl.load(table + 2 * n_tensors + tensor).to(tl.pointer_type(tl.float32)) + first
        v_at = tl.load(table + 3 * n_tensors + tensor).to(tl.pointer_type(tl.float32)) + first
        w_at = tl.load(table + 4 * n_tensors + tensor).to(tl.pointer_type(dtype)) + first
        r = tl.arange(0, ROWS)
        a = rows + row + r
        of_g = tl.load(a, mask=r < n_rows, other=0.0)[:, None]
        of_m = tl.load(a + n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        of_s = tl.load(a + 2 * n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        of_w = tl.load(a + 3 * n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        plain = tl.load(a + 4 * n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        factored = tl.load(a + 5 * n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        k = tl.load(a + 6 * n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        shift = tl.load(a + 7 * n_rows_in_all, mask=r < n_rows, other=0.0)[:, None]
        total = tl.zeros((ROWS,), tl.float32)
        for start in range(0, n, BLOCK):
            c = start + tl.arange(0, BLOCK)
            there = (r < n_rows)[:, None] & (c < n)[None, :]
            at = r[:, None] * n + c[None, :]
            over = tl.load(columns + column + c, mask=c < n, other=0.0)[None, :]
            by = tl.load(columns + n_columns + column + c, mask=c < n, other=0.0)[None, :]
            plus = tl.load(columns + 2 * n_columns + column + c, mask=c < n, other=0.0)[None, :]
            g = tl.load(g_at + at, mask=there, other=0.0).to(tl.float32)
            w = tl.load(w_at + at, mask=there, other=0.0).to(tl.float32)
            m = tl.load(m_at + at, mask=there, other=0.0)
            s = tl.load(s_at + at, mask=there, other=0.0)
            v = tl.load(v_at + at, mask=there, other=0.0)
            q = 1.0 / tl.sqrt(v * k + floor)
            u = by * ((of_g * g + of_m * m + of_s * s) * q + of_w * w + (plain + factored * over) * m + shift) + plus
            tl.store(out + to + at, u, mask=there)
            total += tl.sum(tl.where(there, u * u, 0.0), 1)
        tl.store(squares + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def add_squares(spans, squares, totals, BLOCK: tl.constexpr):
    """The sums of squares of a tensor, from those of its parts. spans: [T, 2]: its first part; its parts."""
    tensor = tl.program_id(0)
    first, count = tl.load(spans + 2 * tensor), tl.load(spans + 2 * tensor + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(squares + first + i, mask=i < count, other=0.0)
    tl.store(totals + tensor, tl.sum(total, 0))


@triton.jit
def scale(parts, out, factors, FIELDS: tl.constexpr, BLOCK: tl.constexpr):
    """Brings the updates to their RMS. factors: [T]."""
    part = parts + tl.program_id(0).to(tl.int64) * FIELDS
    factor = tl.load(factors + tl.load(part))
    count, to = tl.load(part + 1) * tl.load(part + 2), tl.load(part + 7)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(out + to + i, tl.load(out + to + i, mask=i < count, other=0.0) * factor, mask=i < count)
