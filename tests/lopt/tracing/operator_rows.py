"""One row for each operator: a piece of a network, and how many groups of neurons it leaves.

A row's function gets one or two hidden tensors h and g of one shape, (batch 2, 6 channels, *space), whose channels are
permuted freely, each on its own, and whose other axes are fixed; what it returns is read out by a Linear layer. So the
number of groups is 2 if there are two and nothing ties them, 1 if they are tied or there is only h, and 0 if the order
matters. Uniform tensors that are made on the way (padding, ones) have groups of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

A = torch.ops.aten
FLAT, LINE, PLANE, SOLID = (), (4,), (4, 4), (2, 2, 2)


class Row(NamedTuple):
    space: tuple[int, ...]
    groups: int
    run: Callable[..., Any]
    single: bool = False  # in float32: the operator knows no other


class Net(nn.Module):
    """Linear, the row, Linear."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        dtype = torch.float32 if row.single else torch.float64
        self.row, self.dtype = row, dtype
        self.used = sum(p.default is p.empty for p in inspect.signature(row.run).parameters.values())
        self.a, self.b = (nn.Parameter(torch.randn(6, 3, dtype=dtype)) for _ in range(2))
        self.x = torch.randn(2, 3, *row.space, dtype=dtype)
        out = torch.cat([t.flatten() for t in self.made(self.x)])
        self.leave = nn.Parameter(torch.randn(2, out.numel(), dtype=dtype))

    def made(self, x: Tensor) -> list[Tensor]:
        hidden = (torch.tanh(torch.einsum("bi...,oi->bo...", x, w)) for w in (self.a, self.b)[: self.used])
        out = self.row.run(*hidden)
        found = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
        return [torch.view_as_real(t) if t.is_complex() else t.to(self.dtype) for t in found]

    def forward(self, x: Tensor) -> Tensor:
        return self.leave @ torch.cat([t.flatten() for t in self.made(x)])


def _ids(*values: int) -> Tensor:
    return torch.tensor(values)


def _lower(n: int) -> Tensor:
    return 3 * torch.eye(n) + torch.tril(_table(n, n))


def _table(*shape: int) -> Tensor:
    """A constant whose entries differ."""
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def _whole(x: Tensor) -> Tensor:
    return x.contiguous()


def _lstm(h: Tensor, g: Tensor) -> Tensor:
    """One step of a layer with one hidden unit, whose input weights are g twice."""
    one, bias = h.new_zeros(1, 2, 1), h.new_zeros(4)
    gates = _table(4, 1).to(h)
    arguments = (h[None], torch.cat([g, g]), gates, bias, bias, one, one, False, [], 2, 1, 1, True, False, False, False)
    return A.mkldnn_rnn_layer(*arguments)[0]


def _asserted(x: Tensor) -> Tensor:
    finite = x.isfinite().all()
    A._assert_async(finite)
    A._assert_scalar(finite.item(), "not finite")
    A._assert_tensor_metadata(x, [2, 6])
    return x * 2


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """A mean and a variance for every channel."""
    x = x.detach()
    return x.mean((0, 2)), x.var((0, 2))


def _filled(made: Tensor) -> Tensor:
    return made.fill_(0.5)


# --- entry by entry --------------------------------------------------------------------------------------------------

POINTWISE = {
    "hardswish": Row(FLAT, 1, lambda h: F.hardswish(h)),
    "hardswish_": Row(FLAT, 1, lambda h: F.hardswish(h.clone(), True)),
    "log_sigmoid": Row(FLAT, 1, lambda h: F.logsigmoid(h)),
    "leaky_relu": Row(FLAT, 1, lambda h: F.leaky_relu(h)),
    "prelu": Row(LINE, 2, lambda h, g: F.prelu(h, g.mean((0, 1))[:1]) + g.sum(1, keepdim=True)),
    "prelu of channels": Row(LINE, 1, lambda h, g: F.prelu(h, g[0, :, 0])),
    "masked_fill": Row(FLAT, 1, lambda h, g: h.masked_fill(g > 0, 0.3)),
    "masked_fill_": Row(FLAT, 1, lambda h, g: h.clone().masked_fill_(g > 0, 0.3)),
    "where": Row(FLAT, 1, lambda h, g: torch.where(g > 0, h, 0.1)),
    "copy_": Row(FLAT, 1, lambda h, g: h + torch.zeros_like(g).copy_(g)),
    "copy": Row(FLAT, 1, lambda h, g: h + A.copy(torch.zeros_like(g), g)),
    "polar": Row(FLAT, 1, lambda h, g: torch.polar(h.abs(), g)),
    "complex": Row(FLAT, 1, lambda h, g: torch.complex(h, g)),
    "conjugate": Row(FLAT, 1, lambda h, g: torch.complex(h, g).conj() * torch.complex(g, h)),
    "max of two": Row(FLAT, 1, lambda h, g: torch.max(h, g)),
    "min of two": Row(FLAT, 1, lambda h, g: torch.min(h, g)),
    "add with broadcasting": Row(LINE, 2, lambda h, g: h + g.sum(1, keepdim=True)),
    "glu": Row(FLAT, 1, lambda h, g: F.glu(torch.cat([h, g], 1), 1)),
    "outer product": Row(FLAT, 2, lambda h, g: h[:, :, None] * g[:, None]),
}

# --- products --------------------------------------------------------------------------------------------------------

CONTRACTIONS = {
    "mm": Row(FLAT, 1, lambda h, g: h @ g.T),
    "linalg_solve_triangular": Row(FLAT, 1, lambda h: A.linalg_solve_triangular(_lower(2), h, upper=False)),
    "linalg_solve_triangular: along the order": Row(
        FLAT, 0, lambda h: A.linalg_solve_triangular(_lower(6), h.T, upper=False)
    ),
    "linalg_solve_triangular: from the right": Row(
        FLAT, 1, lambda h: A.linalg_solve_triangular(_lower(2), h.T, upper=False, left=False)
    ),
    "addmm": Row(FLAT, 1, lambda h, g: torch.addmm(h, _table(2, 2), g)),
    "addmm_": Row(FLAT, 1, lambda h, g: h.clone().addmm_(_table(2, 2), g)),
    "_addmm_activation": Row(FLAT, 1, lambda h, g: A._addmm_activation(h[0], _table(2, 2), g)),
    "_int_mm": Row(FLAT, 1, lambda h, g: A._int_mm((h > 0).to(torch.int8), (g > 0).to(torch.int8).T)),
    "bmm": Row(LINE, 1, lambda h, g: h.mT @ g),
    "baddbmm": Row(LINE, 2, lambda h, g: torch.baddbmm(torch.zeros(6, 6).to(h), h, g.mT)),
    "baddbmm_": Row(LINE, 2, lambda h, g: torch.zeros(2, 6, 6).to(h).baddbmm_(h, g.mT)),
    "addbmm": Row(LINE, 2, lambda h, g: torch.addbmm(torch.zeros(6, 6).to(h), h, g.mT)),
    "addbmm_": Row(LINE, 2, lambda h, g: torch.zeros(6, 6).to(h).addbmm_(h, g.mT)),
    "mv": Row(FLAT, 1, lambda h, g: h.mv(g[0])),
    "addmv": Row(FLAT, 1, lambda h, g: torch.addmv(torch.ones(2).to(h), h, g[0])),
    "addmv_": Row(FLAT, 1, lambda h, g: torch.ones(2).to(h).addmv_(h, g[0])),
    "dot": Row(FLAT, 1, lambda h, g: torch.dot(h[0], g[0])),
    "vdot": Row(FLAT, 1, lambda h, g: torch.vdot(h[0], g[0])),
    "linear": Row(FLAT, 1, lambda h, g: F.linear(h, g, h.sum(1))),
    "addr": Row(FLAT, 2, lambda h, g: torch.addr(torch.zeros(6, 6).to(h), h[0], g[0])),
    "addr_": Row(FLAT, 2, lambda h, g: torch.zeros(6, 6).to(h).addr_(h[0], g[0])),
    "cdist": Row(FLAT, 1, lambda h, g: torch.cdist(h, g)),
    "cdist of neurons": Row(LINE, 2, lambda h, g: torch.cdist(h, g)),
    "cdist of batches": Row(LINE, 2, lambda h, g: torch.cdist(h[:, :, None], g[:, None])),
    "_euclidean_dist": Row(LINE, 2, lambda h, g: A._euclidean_dist(h + 2, g - 2)),
    "_trilinear": Row(FLAT, 3, lambda h, g: F.bilinear(h, g, torch.ones(2, 6, 6).to(h))),
    "einsum": Row(LINE, 2, lambda h, g: torch.einsum("bis,bjs->ij", h, g)),
    "attention": Row(PLANE, 1, lambda h, g: F.scaled_dot_product_attention(h, g, h)),
    "attention over neurons": Row(
        LINE, 2, lambda h, g: F.scaled_dot_product_attention(g[:, None], h[:, None], h[:, None])
    ),
    "causal attention over neurons": Row(
        LINE, 0, lambda h, g: F.scaled_dot_product_attention(g[:, None], h[:, None], h[:, None], is_causal=True)
    ),
    "flash attention": Row(
        PLANE, 1, lambda h, g: A._scaled_dot_product_flash_attention_for_cpu(*map(_whole, (h, g, h)))[0]
    ),
    "convolution": Row(PLANE, 1, lambda h, g: F.conv2d(h, g)),
    "transposed": Row(LINE, 1, lambda h, g: F.conv_transpose1d(h, g.transpose(0, 1))),
    "one tap": Row(LINE, 1, lambda h, g: F.conv1d(h, g[:, :, :1])),
    "depthwise": Row(LINE, 1, lambda h, g: F.conv1d(h, g[0, :, None], groups=6)),
    "two groups": Row(LINE, 4, lambda h, g: F.conv1d(h, torch.ones(4, 3, 1).to(h), groups=2) + g.sum(1, keepdim=True)),
    "along the channels": Row(LINE, 0, lambda h: F.conv1d(h.mT, _table(4, 4, 3), padding=1)),
    "_convolution": Row(
        PLANE, 1, lambda h, g: A._convolution(h, g, None, [1] * 2, [0] * 2, [1] * 2, False, [0] * 2, 1, *[False] * 4)
    ),
    "_slow_conv2d_forward": Row(PLANE, 1, lambda h, g: A._slow_conv2d_forward(h, g, [4, 4], None, [1, 1], [0, 0])),
    "mkldnn_rnn_layer": Row(FLAT, 1, lambda h, g: _lstm(h, g), single=True),
    "mkldnn_convolution": Row(
        PLANE, 1, lambda h, g: A.mkldnn_convolution(h, g, None, [0, 0], [1, 1], [1, 1], 1), single=True
    ),
}

# --- made on the way -------------------------------------------------------------------------------------------------

UNIFORM = {
    "zeros": lambda h: torch.zeros(6),
    "ones": lambda h: torch.ones(6),
    "full": lambda h: torch.full((6,), 0.3),
    "empty": lambda h: _filled(torch.empty(6)),
    "scalar_tensor": lambda h: torch.scalar_tensor(0.2),
    "empty_strided": lambda h: _filled(torch.empty_strided((6,), (1,))),
    "empty_permuted": lambda h: _filled(torch.empty_permuted((2, 6), (0, 1))),
    "new_zeros": lambda h: h.new_zeros(6),
    "new_ones": lambda h: h.new_ones(6),
    "new_full": lambda h: h.new_full((6,), 0.3),
    "new_empty": lambda h: _filled(h.new_empty(6)),
    "new_empty_strided": lambda h: _filled(h.new_empty_strided((6,), (1,))),
    "zeros_like": lambda h: torch.zeros_like(h),
    "ones_like": lambda h: torch.ones_like(h),
    "full_like": lambda h: torch.full_like(h, 0.3),
    "empty_like": lambda h: _filled(torch.empty_like(h)),
    "_efficientzerotensor": lambda h: A._efficientzerotensor((6,), dtype=h.dtype).clone(),
    "fill": lambda h: A.fill(h, 0.4),
    "zero_": lambda h: h.clone().zero_(),
}
DIFFERENT = {
    "arange": lambda h: torch.arange(6),
    "range": lambda h: A.range(1, 6),
    "linspace": lambda h: torch.linspace(0, 1, 6),
    "logspace": lambda h: torch.logspace(0, 1, 6),
    "eye": lambda h: torch.eye(6)[0],
    "tril_indices": lambda h: torch.tril_indices(3, 3)[0],
    "triu_indices": lambda h: torch.triu_indices(3, 3)[1],
    "windows": lambda h: sum(
        getattr(torch, f"{name}_window")(6) for name in ("hann", "hamming", "blackman", "bartlett", "kaiser")
    ),
    "rand_like": lambda h: torch.rand_like(h),
    "randn_like": lambda h: torch.randn_like(h),
    "randint_like": lambda h: torch.randint_like(h, 1, 5),
    "rand": lambda h: torch.rand(6),
    "a constant": lambda h: torch.tensor([1.0, 2, 3, 4, 5, 6]),
    "a uniform constant from outside": lambda h: torch.tensor([1.0] * 6),
}
CREATION = {name: Row(FLAT, 1, lambda h, make=make: h + make(h).to(h)) for name, make in UNIFORM.items()}
CREATION |= {name: Row(FLAT, 0, lambda h, make=make: h * make(h).to(h)) for name, make in DIFFERENT.items()}

# --- places ----------------------------------------------------------------------------------------------------------

INDEXING = {
    "embedding": Row(FLAT, 1, lambda h: F.embedding(_ids(0, 1, 0), h)),
    "embedding of neurons": Row(FLAT, 0, lambda h: F.embedding(_ids(0, 1, 5), h.T)),
    "embedding by neurons": Row(FLAT, 2, lambda h, g: F.embedding((h > 0).long(), g)),
    "embedding_renorm_": Row(FLAT, 1, lambda h: F.embedding(_ids(0, 1), h.clone(), max_norm=0.5)),
    "embedding_bag": Row(FLAT, 1, lambda h: F.embedding_bag(_ids(0, 1, 0), h, _ids(0, 2))),
    "_embedding_bag": Row(FLAT, 1, lambda h: A._embedding_bag(h, _ids(0, 1, 0), _ids(0, 2))[0]),
    "index_select": Row(FLAT, 0, lambda h: h.index_select(1, _ids(2, 0))),
    "index_select of rows": Row(FLAT, 1, lambda h: h.index_select(0, _ids(1, 0, 0))),
    "index": Row(FLAT, 0, lambda h: h[:, _ids(2, 0)]),
    "index of rows": Row(FLAT, 1, lambda h: h[_ids(1, 0, 0)]),
    "index around the channels": Row(PLANE, 1, lambda h: h[_ids(0, 1), :, _ids(2, 3)]),
    "index by a mask of neurons": Row(FLAT, 0, lambda h, g: h[g > -5]),
    "_unsafe_index": Row(FLAT, 1, lambda h: A._unsafe_index(h, [_ids(1, 0)])),
    "index_put": Row(FLAT, 1, lambda h, g: h.index_put((_ids(1),), g[:1])),
    "index_put_": Row(FLAT, 1, lambda h, g: h.clone().index_put_((_ids(1),), g[:1], accumulate=True)),
    "_unsafe_index_put": Row(FLAT, 1, lambda h, g: A._unsafe_index_put(h, [_ids(1)], g[:1])),
    "_index_put_impl_": Row(FLAT, 1, lambda h, g: A._index_put_impl_(h.clone(), [_ids(1)], g[:1])),
    "index_put of neurons": Row(FLAT, 0, lambda h, g: h.index_put((_ids(0, 1), _ids(2, 3)), g.cumsum(1).sum(1))),
    "index_put at places of neurons": Row(
        FLAT, 0, lambda h: torch.zeros(2).to(h).index_put(((h[0] > 0).long(),), h[0])
    ),
    "gather": Row(FLAT, 1, lambda h, g: h.gather(0, (g > 0).long())),
    "gather of neurons": Row(FLAT, 0, lambda h: h.gather(1, _ids(0, 3)[:, None])),
    "gather by neurons": Row(FLAT, 1, lambda g: _table(2, 3).gather(1, (g > 0).long())),
    "take_along_dim": Row(FLAT, 1, lambda h, g: h.take_along_dim((g > 0).long(), 0)),
    "scatter": Row(FLAT, 1, lambda h, g: h.scatter(0, (g > 0).long()[:1], h[:1])),
    "scatter_": Row(FLAT, 1, lambda h, g: h.clone().scatter_(0, (g > 0).long(), 0.3)),
    "scatter at places of neurons": Row(FLAT, 0, lambda h: torch.zeros(2, 2).to(h).scatter(1, (h > 0).long(), h)),
    "scatter_add": Row(FLAT, 1, lambda h: torch.zeros(2, 2).to(h).scatter_add(1, (h > 0).long(), h)),
    "scatter_add_": Row(FLAT, 1, lambda h, g: torch.zeros(2, 6).to(h).scatter_add_(0, (g > 0).long(), h)),
    "scatter_reduce": Row(FLAT, 1, lambda h: torch.zeros(2, 2).to(h).scatter_reduce(1, (h > 0).long(), h, "amax")),
    "scatter_reduce_": Row(FLAT, 1, lambda h, g: torch.zeros(2, 6).to(h).scatter_reduce_(0, (g > 0).long(), h, "sum")),
    "index_add": Row(FLAT, 1, lambda h, g: h.index_add(0, _ids(1), g[:1])),
    "index_add_": Row(FLAT, 1, lambda h, g: h.clone().index_add_(0, _ids(1), g[:1])),
    "index_add of neurons": Row(FLAT, 0, lambda h, g: h.index_add(1, _ids(1), g.cumsum(1).sum(1, True))),
    "index_copy": Row(FLAT, 1, lambda h, g: h.index_copy(0, _ids(1), g[:1])),
    "index_copy_": Row(FLAT, 1, lambda h, g: h.clone().index_copy_(0, _ids(1), g[:1])),
    "index_copy at places of neurons": Row(
        FLAT, 0, lambda h: torch.zeros(2).to(h).index_copy(0, (h[0] > 0).long(), h[0])
    ),
    "index_fill": Row(FLAT, 1, lambda h: h.index_fill(0, _ids(1), 0.2)),
    "index_fill_": Row(FLAT, 0, lambda h: h.clone().index_fill_(1, _ids(1), 0.2)),
    "index_reduce": Row(FLAT, 1, lambda h, g: h.index_reduce(0, _ids(1), g[:1], "amax")),
    "slice_scatter": Row(FLAT, 0, lambda h: h.slice_scatter(h[:, 2:4] * 2, 1, 2, 4)),
    "select_scatter": Row(FLAT, 0, lambda h, g: h.select_scatter(g.sum(1), 1, 2) + g),
    "diagonal_scatter": Row(FLAT, 0, lambda h, g: h.diagonal_scatter(g.cumsum(1).sum(1))),
    "as_strided": Row(FLAT, 0, lambda h: h.as_strided((3, 4), (2, 1))),
    "as_strided_": Row(FLAT, 0, lambda h: h.clone().as_strided_((3, 4), (2, 1))),
    "as_strided_copy": Row(FLAT, 0, lambda h: torch.as_strided_copy(h, (3, 4), (2, 1))),
    "repeat_interleave": Row(FLAT, 0, lambda h: h.repeat_interleave(_ids(1, 2, 1, 0, 1, 1), 1)),
    "take": Row(FLAT, 0, lambda h: h.take(_ids(2, 7))),
    "put": Row(FLAT, 0, lambda h: h.put(_ids(2, 7), h.sum(1))),
    "put_": Row(FLAT, 0, lambda h: h.clone().put_(_ids(2, 7), h.sum(1))),
    "nonzero": Row(FLAT, 0, lambda h: h.nonzero()),
    "nonzero_static": Row(FLAT, 0, lambda h: A.nonzero_static(h, size=3)),
    "masked_select": Row(FLAT, 0, lambda h, g: h.masked_select(g > -5)),
    "masked_scatter": Row(FLAT, 0, lambda h, g: h.masked_scatter(g > 0, h)),
    "masked_scatter_": Row(FLAT, 0, lambda h, g: h.clone().masked_scatter_(g > 0, h)),
    "unique": Row(FLAT, 0, lambda h: torch.unique(h, return_inverse=True)[1]),
    "unique_dim": Row(FLAT, 0, lambda h: torch.unique(h, dim=1)),
    "unique_consecutive": Row(FLAT, 0, lambda h: torch.unique_consecutive(h)),
    "bincount": Row(FLAT, 0, lambda h: torch.bincount((h[0] > 0).long(), minlength=2)),
    "histc": Row(FLAT, 0, lambda h: torch.histc(h, 3)),
    "searchsorted": Row(FLAT, 0, lambda h, g: torch.searchsorted(h[0].sort()[0], g[0])),
    "bucketize": Row(FLAT, 0, lambda h, g: torch.bucketize(h, g[0].sort()[0])),
}

# --- moving entries about --------------------------------------------------------------------------------------------

MOVEMENTS = {
    "clone": Row(FLAT, 1, lambda h: h.clone()),
    "detach": Row(FLAT, 1, lambda h: h.detach() * 2 + h),
    "detach_": Row(FLAT, 1, lambda h: h.clone().detach_() + h),
    "alias": Row(FLAT, 1, lambda h: A.alias(h)),
    "lift": Row(FLAT, 1, lambda h: A.lift(h) + A.lift_fresh(h) + A.lift_fresh_copy(h)),
    "_lazy_clone": Row(FLAT, 0, lambda h: A._lazy_clone(h)),  # its memory is found only when it is written
    "_to_copy": Row(FLAT, 1, lambda h: h.to(torch.complex128)),
    "contiguous": Row(LINE, 1, lambda h: h.mT.contiguous()),
    "complex parts": Row(FLAT, 1, lambda h, g: torch.complex(h, g).real + torch.complex(h, g).imag),
    "conj": Row(FLAT, 1, lambda h, g: torch.complex(h, g).conj().resolve_conj()),
    "neg view": Row(FLAT, 1, lambda h, g: (torch.complex(h, g).conj().imag * 1.0).resolve_neg()),
    "_neg_view": Row(FLAT, 1, lambda h: A._neg_view(h) * 1.0),
    "positive": Row(FLAT, 1, lambda h: +h),
    "view": Row(LINE, 1, lambda h: _whole(h).view(2, 24)),
    "_unsafe_view": Row(LINE, 1, lambda h: A._unsafe_view(_whole(h), (2, 24))),
    "reshape": Row(LINE, 1, lambda h: h.mT.reshape(2, 24)),
    "_reshape_alias": Row(LINE, 1, lambda h: A._reshape_alias(_whole(h), (2, 24), (24, 1))),
    "view_copy": Row(LINE, 1, lambda h: torch.view_copy(_whole(h), (12, 4))),
    "view that does not fit": Row(LINE, 0, lambda h: h.reshape(2, 4, 6)),
    "view as blocks": Row(FLAT, 2, lambda h: h.view(2, 2, 3).sum(2)),
    "view.dtype": Row(LINE, 1, lambda h: h.view(torch.int64).view(torch.float64)),
    "view.dtype of another width": Row(LINE, 1, lambda h: _whole(h).view(torch.int32) + h.sum().int()),
    "view.dtype along the neurons": Row(FLAT, 0, lambda h: _whole(h).view(torch.int32)),
    "view_copy.dtype": Row(FLAT, 1, lambda h: torch.view_copy(h, dtype=torch.int64)),
    "permute": Row(PLANE, 1, lambda h: h.permute(3, 1, 0, 2)),
    "permute_copy": Row(PLANE, 1, lambda h: torch.permute_copy(h, (3, 1, 0, 2))),
    "transpose": Row(LINE, 1, lambda h: h.transpose(1, 2)),
    "transpose_": Row(LINE, 1, lambda h: h.clone().transpose_(1, 2)),
    "transpose_copy": Row(LINE, 1, lambda h: torch.transpose_copy(h, 1, 2)),
    "swapaxes_": Row(LINE, 1, lambda h: h.clone().swapaxes_(1, 2).clone().swapdims_(0, 1)),
    "t": Row(FLAT, 1, lambda h: h.t()),
    "t_": Row(FLAT, 1, lambda h: h.clone().t_()),
    "t_copy": Row(FLAT, 1, lambda h: torch.t_copy(h)),
    "unsqueeze": Row(FLAT, 1, lambda h: h.unsqueeze(1) + h.clone().unsqueeze_(1) + torch.unsqueeze_copy(h, 1)),
    "squeeze": Row(FLAT, 1, lambda h: h[:, None].squeeze(1) + h[:, None].clone().squeeze_() + h[:, None].squeeze()),
    "squeeze_copy": Row(FLAT, 1, lambda h: torch.squeeze_copy(h[:, None], 1)),
    "select": Row(FLAT, 1, lambda h: h.select(0, 1) + torch.select_copy(h, 0, 0)),
    "select a neuron": Row(FLAT, 2, lambda h: h[:, 2] * h.sum(1)),
    "slice": Row(FLAT, 2, lambda h: h[:, :2] * h[:, 4:]),
    "slice_copy": Row(FLAT, 1, lambda h: torch.slice_copy(h, 0, 0, 1)),
    "slice with a step": Row(FLAT, 1, lambda h: h[:, ::2]),
    "unbind": Row(FLAT, 1, lambda h: [*h.unbind(0), *A.unbind_copy(h)]),
    "split": Row(FLAT, 2, lambda h: h.split(3, 1)),
    "split with sizes": Row(FLAT, 2, lambda h: h.split([2, 4], 1)),
    "split_copy": Row(FLAT, 2, lambda h: [*A.split_copy(h, 3, 1), *A.split_with_sizes_copy(h, [3, 3], 1)]),
    "unsafe_split": Row(FLAT, 2, lambda h: [*h.unsafe_split(3, 1), *h.unsafe_split_with_sizes([3, 3], 1)]),
    "chunk": Row(FLAT, 2, lambda h: [*h.chunk(2, 1), *h.unsafe_chunk(2, 1), *h.tensor_split(2, 1)]),
    "cat": Row(FLAT, 2, lambda h, g: torch.cat([h, g], 1)),
    "cat of rows": Row(FLAT, 2, lambda h, g: torch.concat([h, g], 0)),
    "concatenate": Row(FLAT, 2, lambda h, g: torch.concatenate([h, torch.zeros(0).to(h), g], 1)),
    "stack": Row(FLAT, 1, lambda h, g: torch.tanh(torch.stack([h, g]))),
    "expand": Row(FLAT, 2, lambda h, g: h[:, :, None].expand(-1, -1, 6) * g[:, None]),
    "expand_copy": Row(FLAT, 1, lambda h: torch.expand_copy(h[:, None], (2, 3, 6)).sum(1)),
    "repeat": Row(FLAT, 1, lambda h: h.repeat(1, 3).reshape(2, 3, 6).sum(1)),
    "constant_pad_nd": Row(LINE, 2, lambda h: F.pad(h, (1, 2))),
    "pad of neurons": Row(FLAT, 2, lambda h: F.pad(h, (2, 1))),
    "pad that cuts": Row(FLAT, 2, lambda h: F.pad(h, (-1, 2))),
    "view_as_real": Row(FLAT, 1, lambda h, g: torch.view_as_real(torch.complex(h, g))),
    "view_as_real_copy": Row(FLAT, 1, lambda h, g: torch.view_as_real_copy(torch.complex(h, g))),
    "view_as_complex": Row(FLAT, 1, lambda h, g: torch.view_as_complex(torch.stack([h, g], -1).tanh())),
    "view_as_complex_copy": Row(
        FLAT, 1, lambda h, g: torch.view_as_complex_copy(torch.stack([h, g], -1).tanh().detach())
    ),
    "diagonal": Row(LINE, 1, lambda h, g: (h @ g.mT).diagonal(0, 1, 2)),
    "diagonal_copy": Row(LINE, 1, lambda h, g: torch.diagonal_copy(h @ g.mT, 0, 1, 2)),
    "another diagonal": Row(LINE, 0, lambda h, g: (h @ g.mT).diagonal(1, 1, 2)),
    "diag_embed": Row(FLAT, 1, lambda h: h.diag_embed()),
    "another diag_embed": Row(FLAT, 0, lambda h: h.diag_embed(1)),
    "flip": Row(FLAT, 0, lambda h: h.flip(1)),
    "flip of rows": Row(FLAT, 1, lambda h: h.flip(0) + h.flipud()),
    "fliplr": Row(FLAT, 0, lambda h: h.fliplr()),
    "roll": Row(FLAT, 0, lambda h: h.roll(1, 1)),
    "roll of rows": Row(FLAT, 1, lambda h: h.roll(1, 0)),
    "roll of all": Row(FLAT, 0, lambda h: h.roll(1)),
    "rot90": Row(PLANE, 1, lambda h: h.rot90(1, (2, 3))),
}

# --- norms and reductions --------------------------------------------------------------------------------------------

VARIANCE = {"var": torch.var, "std": torch.std, "var_mean": torch.var_mean, "std_mean": torch.std_mean}
REDUCTIONS = {
    "layer_norm": Row(FLAT, 1, lambda h, g: F.layer_norm(h, (6,), g[0], g[1])),
    "layer_norm in inference": Row(FLAT, 1, lambda h: torch.layer_norm(h, (6,))),
    "rms_norm": Row(FLAT, 1, lambda h, g: F.rms_norm(h, (6,), g[0])),
    "_fused_rms_norm": Row(FLAT, 1, lambda h: A._fused_rms_norm(h, [6], None, 1e-3)[0]),
    "group_norm": Row(LINE, 2, lambda h, g: F.group_norm(h, 2, g[0, :, 0])),
    "native_group_norm": Row(LINE, 2, lambda h: A.native_group_norm(_whole(h), None, None, 2, 6, 4, 2, 1e-3)[0]),
    "batch_norm": Row(LINE, 1, lambda h, g: F.batch_norm(h, None, None, g[0, :, 0], None, True)),
    "batch_norm with statistics": Row(LINE, 1, lambda h, g: F.batch_norm(h, *_statistics(g))),
    "native_batch_norm": Row(
        LINE, 1, lambda h, g: A.native_batch_norm(h, None, None, *_statistics(g), False, 0.1, 1e-3)[0]
    ),
    "_native_batch_norm_legit": Row(LINE, 1, lambda h: A._native_batch_norm_legit(h, None, None, True, 0.1, 1e-3)[0]),
    "_native_batch_norm_legit_no_training": Row(
        LINE,
        1,
        lambda h, g: A._native_batch_norm_legit_no_training(h, None, None, *_statistics(g), 0.1, 1e-3)[0],
    ),
    "_native_batch_norm_legit_functional": Row(
        LINE,
        1,
        lambda h, g: A._native_batch_norm_legit_functional(h, None, None, *_statistics(g), True, 0.1, 1e-3)[0],
    ),
    "_batch_norm_with_update": Row(
        LINE,
        1,
        lambda h, g: A._batch_norm_with_update(h, None, None, *_statistics(g), 0.1, 1e-3)[0],
    ),
    "_batch_norm_with_update_functional": Row(
        LINE,
        1,
        lambda h, g: A._batch_norm_with_update_functional(h, None, None, *_statistics(g), 0.1, 1e-3)[0],
    ),
    "_batch_norm_no_update": Row(
        LINE, 1, lambda h, g: A._batch_norm_no_update(h, None, None, *_statistics(g), 0.1, 1e-3)[0]
    ),
    "instance_norm": Row(LINE, 1, lambda h: F.instance_norm(h)),
    "weight_norm": Row(FLAT, 1, lambda h, g: A._weight_norm(h.T.contiguous(), g.T.sum(1, True), 0)),
    "_weight_norm_interface": Row(FLAT, 2, lambda h, g: A._weight_norm_interface(h, g.sum(1, True), 0)[0]),
    "sum": Row(FLAT, 1, lambda h: h.sum(1) + h.sum()),
    "sum of rows": Row(FLAT, 1, lambda h: h.sum(0)),
    "mean": Row(LINE, 1, lambda h: h.mean(2, keepdim=True)),
    "nansum": Row(FLAT, 1, lambda h: h.nansum(1)),
    "nanmean": Row(FLAT, 1, lambda h: h.nanmean(1)),
    "prod": Row(FLAT, 1, lambda h: h.prod(1) + h.prod()),
    "amax": Row(FLAT, 1, lambda h: h.amax(1) - h.amin(1)),
    "aminmax": Row(FLAT, 1, lambda h: list(h.aminmax(dim=1))),
    "max": Row(FLAT, 1, lambda h: h.max() - h.min()),
    "all and any": Row(FLAT, 1, lambda h: (h > 0).all(1).to(h) + (h > 0).any(1).to(h) * h.sum(1)),
    "logsumexp": Row(FLAT, 1, lambda h: h.logsumexp(1)),
    **{n: Row(FLAT, 1, lambda h, f=f: f(h, 1)) for n, f in VARIANCE.items()},
    "norm": Row(FLAT, 1, lambda h: A.norm(h, 2) + A.norm(h, 2, [1])),
    "vector_norm": Row(FLAT, 1, lambda h: torch.linalg.vector_norm(h, dim=1)),
    "count_nonzero": Row(FLAT, 1, lambda h: h.relu().count_nonzero(1).to(h) * h.sum(1)),
    "argmax": Row(FLAT, 0, lambda h: h.argmax(1)),
    "argmin": Row(FLAT, 0, lambda h: h.argmin(1)),
    "argmax of rows": Row(FLAT, 1, lambda h: h.argmax(0).to(h) * h),
    "max.dim": Row(FLAT, 0, lambda h: h.max(1)),
    "max.dim of rows": Row(FLAT, 1, lambda h: h.max(0)),
    "min.dim": Row(FLAT, 0, lambda h: h.min(1)),
    "median": Row(FLAT, 0, lambda h: h.median()),
    "median.dim": Row(FLAT, 0, lambda h: h.median(1)),
    "nanmedian": Row(FLAT, 0, lambda h: h.nanmedian()),
    "nanmedian.dim": Row(FLAT, 0, lambda h: h.nanmedian(1)),
    "mode": Row(FLAT, 0, lambda h: h.mode(1)),
    "kthvalue": Row(FLAT, 0, lambda h: h.kthvalue(2, 1)),
    "softmax": Row(FLAT, 1, lambda h: h.softmax(1)),
    "log_softmax": Row(LINE, 1, lambda h: h.log_softmax(2)),
    "_safe_softmax": Row(FLAT, 1, lambda h: A._safe_softmax(h, 1)),
    "cumsum": Row(FLAT, 0, lambda h: h.cumsum(1)),
    "cumsum of rows": Row(FLAT, 1, lambda h: h.cumsum(0)),
    "cumsum_": Row(FLAT, 0, lambda h: h.clone().cumsum_(1)),
    "cumprod": Row(FLAT, 0, lambda h: h.cumprod(1)),
    "cumprod_": Row(FLAT, 0, lambda h: h.clone().cumprod_(1)),
    "logcumsumexp": Row(FLAT, 0, lambda h: h.logcumsumexp(1)),
    "cummax": Row(FLAT, 0, lambda h: h.cummax(1)),
    "cummin": Row(FLAT, 0, lambda h: h.cummin(1)),
    "sort": Row(FLAT, 0, lambda h: h.sort(1)),
    "sort of rows": Row(FLAT, 1, lambda h: h.sort(0)),
    "argsort": Row(FLAT, 0, lambda h: h.argsort(1)),
    "msort": Row(FLAT, 0, lambda h: h.T.contiguous().msort()),
    "topk": Row(FLAT, 0, lambda h: h.topk(2, 1)),
    "renorm": Row(FLAT, 1, lambda h: h.renorm(2, 0, 0.1)),
    "renorm_": Row(FLAT, 0, lambda h: h.clone().renorm_(2, 1, 0.1)),
}

# --- space -----------------------------------------------------------------------------------------------------------

SPACES = {1: LINE, 2: PLANE, 3: SOLID}
SPATIAL: dict[str, Row] = {}
for rank, space in SPACES.items():
    modes = {"nearest": 1, "nearest-exact": 1, {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]: 1}
    for mode in modes:
        SPATIAL[f"{mode} {rank}d"] = Row(space, 1, lambda h, m=mode: F.interpolate(h, scale_factor=2, mode=m))
    named = {
        name: getattr(F, f"{name}{rank}d")
        for name in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "max_unpool")
    }
    for name in ("max_pool", "avg_pool"):
        SPATIAL[f"{name}{rank}d"] = Row(space, 1, lambda h, f=named[name]: f(h, 2))
    for name in ("adaptive_max_pool", "adaptive_avg_pool"):
        SPATIAL[f"{name}{rank}d"] = Row(space, 1, lambda h, f=named[name], r=rank: f(h, (1, 1, 2)[-r:]))
    SPATIAL[f"max_unpool{rank}d"] = Row(
        space,
        1,
        lambda h, g, pool=named["max_pool"], back=named["max_unpool"]: back(
            pool(g, 2), pool(h, 2, return_indices=True)[1], 2
        ),
    )
    for mode in ("reflect", "replicate"):
        SPATIAL[f"{mode} {rank}d"] = Row(space, 1, lambda h, m=mode, r=rank: F.pad(h, (1, 1) * r, mode=m))
SPATIAL |= {
    "max_pool1d with indices": Row(LINE, 1, lambda h: F.max_pool1d(h, 2, return_indices=True)),
    "max_pool over neurons": Row(LINE, 0, lambda h: F.max_pool1d(h.mT, 2)),
    "avg_pool over neurons": Row(LINE, 0, lambda h: F.avg_pool1d(h.mT, 2)),
    "interpolation of neurons": Row(LINE, 0, lambda h: F.interpolate(h.mT, scale_factor=2)),
    "bicubic": Row(PLANE, 1, lambda h: F.interpolate(h, scale_factor=2, mode="bicubic")),
    "antialias": Row(PLANE, 1, lambda h: F.interpolate(h, scale_factor=0.5, mode="bilinear", antialias=True)),
    "bicubic antialias": Row(PLANE, 1, lambda h: F.interpolate(h, scale_factor=0.5, mode="bicubic", antialias=True)),
    "fractional_max_pool2d": Row(
        PLANE, 1, lambda h: F.fractional_max_pool2d(h, 2, 2, _random_samples=torch.full((2, 6, 2), 0.3).to(h))
    ),
    "fractional_max_pool3d": Row(
        SOLID, 1, lambda h: F.fractional_max_pool3d(h, 1, 1, _random_samples=torch.full((2, 6, 3), 0.3).to(h))
    ),
    "fractional with samples that differ": Row(
        PLANE, 0, lambda h: F.fractional_max_pool2d(h, 2, 2, _random_samples=_table(2, 6, 2).abs() * 0.9)
    ),
    "triu": Row(LINE, 0, lambda h: h.triu() + h.tril(1)),
    "triu beside the neurons": Row(PLANE, 1, lambda h: h.triu() + h.clone().triu_() + h.clone().tril_()),
    "rfft": Row(LINE, 1, lambda h: torch.fft.rfft(h)),
    "irfft": Row(LINE, 1, lambda h: torch.fft.irfft(torch.complex(h, h.sin()))),
    "fft": Row(LINE, 1, lambda h: torch.fft.fft(torch.complex(h, h.sin()))),
    "fft of neurons": Row(FLAT, 0, lambda h: torch.fft.fft(h)),
    "grid_sample": Row(
        PLANE, 2, lambda h, g: F.grid_sample(h, g.permute(0, 2, 3, 1)[..., :2] * 0.5, align_corners=False)
    ),
    "grid_sample of a solid": Row(
        SOLID, 4, lambda h: F.grid_sample(h, torch.zeros(2, 2, 2, 2, 3).to(h), align_corners=False)
    ),
    "_grid_sampler_2d_cpu_fallback": Row(
        PLANE, 1, lambda h: A._grid_sampler_2d_cpu_fallback(h, _table(2, 2, 2, 2).to(h), 0, 0, False), single=True
    ),
    "im2col": Row(PLANE, 1, lambda h: F.unfold(h, 2)),
    "col2im": Row(PLANE, 1, lambda h: F.fold(F.unfold(h, 2), (4, 4), 2)),
    "unfold": Row(LINE, 1, lambda h: h.unfold(2, 2, 1)),
    "unfold of neurons": Row(FLAT, 0, lambda h: h.unfold(1, 2, 1)),
    "unfold_copy": Row(LINE, 1, lambda h: torch.unfold_copy(h, 2, 2, 1)),
    "channel_shuffle": Row(LINE, 2, lambda h: F.channel_shuffle(h, 2)),
    "native_channel_shuffle": Row(LINE, 2, lambda h: torch.native_channel_shuffle(h, 2)),
    "pixel_shuffle": Row(PLANE, 3, lambda h: F.pixel_shuffle(h.repeat_interleave(4, 1), 2)),
    "item": Row(FLAT, 1, lambda h: h * h.sum().item() + (1 if h.sum() > 0 else 2)),
    "equal": Row(FLAT, 1, lambda h, g: h if torch.equal(h, g) else h + 1),
    "asserts": Row(FLAT, 1, lambda h: _asserted(h)),
    "_fused_sdp_choice": Row(PLANE, 1, lambda h: h * (1 + A._fused_sdp_choice(h, h, h))),
    "is_same_size": Row(FLAT, 1, lambda h: h if A.is_same_size(h, h) else h * 2),
    "is_pinned": Row(FLAT, 1, lambda h: h if h.is_pinned() else h * 2),
    "_is_all_true": Row(FLAT, 1, lambda h: h * A._is_all_true(h < 5) + A._is_any_true(h > 5)),
    "_has_same_storage_numel": Row(FLAT, 1, lambda h: h if A._has_same_storage_numel(h, h) else h * 2),
}

ROWS: dict[str, Row] = {
    f"{kind}: {name}": row
    for kind, rows in {
        "pointwise": POINTWISE, "product": CONTRACTIONS, "made": CREATION, "places": INDEXING, "moved": MOVEMENTS,
        "reduced": REDUCTIONS, "space": SPATIAL,
    }.items()
    for name, row in rows.items()
}  # fmt: skip
