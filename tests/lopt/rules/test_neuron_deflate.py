"""Deflation against singular value decompositions, and its kernel against the operators."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lopt import InvalidInput, WeightSpace
from lopt.rules import Neuron
from lopt.rules.neuron.deflate import deflate, first_subspace, rank_of
from lopt.rules.neuron.form import form_of
from lopt.rules.neuron.kernels import native
from tests.lopt.rules.test_neuron import clocks, gap, generator, neuron, permute_state, run, tensors
from tests.lopt.rules.test_neuron_kernels import needs_compiler

ALONE = 1 << 17  # as kAlone in deflate.h: from so many weights on a matrix is cut into parts, which threads share


def matrices(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Matrices whose first three singular values stand out."""
    g = generator()
    x, left, right = (torch.randn(*shape[:-2], *s, generator=g) for s in (shape[-2:], (shape[-2], 3), (3, shape[-1])))
    return (x + left @ (torch.tensor([[3.0], [2.0], [1.0]]) * right)).to(dtype)


def start(shape: tuple[int, ...], rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    q = torch.linalg.qr(torch.randn(shape[0], min(shape[1:]), rank, generator=generator(3), dtype=dtype)).Q
    return q.mT.contiguous()


def followed(x: Tensor, rank: int, steps: int) -> Tensor:
    """The subspace after some steps."""
    p = start(tuple(x.shape), rank, x.dtype)
    for _ in range(steps):
        p = deflate(x, p)[1]
    return p


def subspaces(p: Tensor) -> Tensor:
    """The projections on what the rows span."""
    return p.mT @ p


@pytest.mark.parametrize("shape", [(1, 12, 8), (1, 8, 12), (3, 9, 9)])
def test_followed_long_enough_it_is_what_the_singular_values_say(shape):
    x, rank = matrices(*shape), 3
    u, p = deflate(x, followed(x, rank, 200))
    left, s, right = torch.linalg.svd(x, full_matrices=False)
    tau = s[:, rank:].square().mean(-1, keepdim=True).sqrt()
    wanted = (left * torch.cat([s[:, :rank].minimum(tau), s[:, rank:]], 1)[:, None]) @ right
    torch.testing.assert_close(u, wanted, rtol=1e-3, atol=1e-3)
    vectors = right if shape[1] >= shape[2] else left.mT
    torch.testing.assert_close(subspaces(p), subspaces(vectors[:, :rank]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 12, 8), (2, 8, 12)])
def test_one_step_weight_by_weight(shape):
    """Against the equations of the module."""
    x = matrices(*shape)
    p = followed(x, 2, 5)
    u, following = deflate(x, p)
    for k in range(shape[0]):
        one, q = (x[k] if shape[1] > shape[2] else x[k].T), p[k].T
        wanted, z = one.clone(), one @ q
        tau = ((one.square().sum() - z.square().sum()) / (min(shape[1:]) - 2)).sqrt()
        for j in range(2):
            wanted -= (1 - (tau / z[:, j].norm()).clamp(max=1)) * torch.outer(z[:, j], q[:, j])
        torch.testing.assert_close(u[k], wanted if shape[1] > shape[2] else wanted.T)
        y = one.T @ z
        wanted = torch.linalg.qr(y / y.norm(dim=0) + 1e-3 * q).Q
        torch.testing.assert_close(subspaces(following[k]), wanted @ wanted.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(following @ following.mT, torch.eye(2).double().expand(2, 2, 2), rtol=1e-4, atol=1e-4)


def test_it_only_ever_brings_down():
    """Where the followed directions are the smaller ones, nothing changes."""
    x = torch.diag(torch.tensor([5.0, 4.0, 3.0, 0.1]))[None]
    u, _ = deflate(x, torch.tensor([[[0.0, 0, 0, 1]]]))
    torch.testing.assert_close(u, x)


def test_a_gradient_of_zero_leaves_the_subspace():
    p = start((2, 12, 8), 2)
    u, following = deflate(torch.zeros(2, 12, 8, dtype=torch.float64), p)
    assert (u == 0).all()
    torch.testing.assert_close(subspaces(following), subspaces(p), rtol=1e-4, atol=1e-4)


def test_derivatives_are_finite_at_zero():
    x, p = torch.zeros(1, 6, 5, dtype=torch.float64, requires_grad=True), start((1, 6, 5), 1).requires_grad_()
    u, following = deflate(x, p)
    for grad in torch.autograd.grad((u.sum() + following.sum()), (x, p)):
        assert grad.isfinite().all()


def test_derivatives():
    x, p = matrices(1, 6, 5).requires_grad_(), start((1, 6, 5), 2).requires_grad_()
    assert torch.autograd.gradcheck(deflate, (x, p))


def test_derivatives_through_steps():
    """Of a sum over updates with respect to θ, along one direction, against central differences."""
    space = WeightSpace({"first": "h:12, in=3", "hidden": "k:9, h:12", "last": "out=2, k:9"})
    rule, params, gradients = neuron(deflation=8), tensors(space, 0), [tensors(space, s) for s in (1, 2, 3)]
    theta = {name: p.detach() for name, p in rule.named_parameters()}
    along = {name: torch.randn(p.shape, generator=generator(5), dtype=p.dtype) for name, p in theta.items()}

    def total(x: Tensor) -> Tensor:
        moved = {name: p + x * along[name] for name, p in theta.items()}
        state, found = rule.init_state(space, params), torch.zeros((), dtype=torch.float64)
        for grads, clock in zip(gradients, clocks(3), strict=True):
            updates, state = functional_call(rule, moved, (space, params, grads, state, clock))
            found = found + (updates["hidden"] * grads["hidden"]).sum()
        return found

    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (came,) = torch.autograd.grad(total(x), x)
    step = torch.tensor(1e-5, dtype=torch.float64)
    torch.testing.assert_close(came, (total(step) - total(-step)).detach() / (2 * step), rtol=1e-5, atol=1e-7)


def test_the_first_subspace():
    """Orthonormal, permuted with the weights, alike at every scale of them, and there where all weights are zero."""
    space = WeightSpace({"w": "a:40, b:32", "v": "b:32, a:40"})
    params = tensors(space, 0)
    for name, axes in space.items():
        form, w = form_of(name, axes), params[name]
        p = first_subspace(form, w, 8)
        torch.testing.assert_close(p @ p.mT, torch.eye(8).double()[None], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(first_subspace(form, 100 * w, 8), p)
        assert first_subspace(form, 0 * w, 8).square().sum() > 0.9
    moves = space.random_permutations(generator())
    rule, moved = neuron(deflation=8), space.permute(params, moves)
    wanted = permute_state(space, rule.init_state(space, params), moves)
    assert gap(rule.init_state(space, moved).tensors, wanted.tensors) < 1e-9


def test_what_is_deflated():
    """Hidden matrices with room for it; with shapes alone, not what looks like an end of the network."""
    axes = {
        "first": "h:12, in=30",
        "hidden": "k:9, h:12",
        "conv": "c:8, k:9*9",
        "small": "d:3, c:8",
        "last": "out=20, d:3",
    }
    space = WeightSpace(axes)
    ranks = {name: rank_of(form_of(name, a), 8) for name, a in space.items()}
    assert ranks == {"first": 0, "hidden": 2, "conv": 2, "small": 0, "last": 0}
    shapes = WeightSpace.from_shapes({"first": (12, 30), "hidden": (9, 12), "last": (7, 9)})
    params, grads = tensors(shapes, 0), tensors(shapes, 1)
    plain, came = (run(neuron(deflation=n), shapes, params, [grads], clocks(1))[0][0] for n in (0, 8))
    for name in ("first", "last"):
        torch.testing.assert_close(came[name], plain[name])
    assert (came["hidden"] - plain["hidden"]).abs().max() > 1e-3


def test_the_size_of_the_update_is_the_learned_one():
    space = WeightSpace({"first": "h:12, in=30", "hidden": "k:16, h:12", "last": "out=3, k:16"})
    params, grads = tensors(space, 0), [tensors(space, 1)] * 8
    plain, came = (run(neuron(deflation=n), space, params, grads, clocks(8), rate=0.0)[0] for n in (0, 8))
    for a, b in zip(came, plain, strict=True):
        for name in a:
            torch.testing.assert_close(a[name].square().mean(), b[name].square().mean())
    before, after = (torch.linalg.svdvals(updates[-1]["hidden"])[0] for updates in (plain, came))
    assert after < 0.95 * before


@needs_compiler
@pytest.mark.parametrize("shape", [(1100, 1001), (1001, 1100), (400, 401), (401, 400), (35, 9000), (4, ALONE // 2)])
def test_large_matrices_are_shared_by_threads(shape):
    """The same bits with any number of threads, and what the operators give."""
    rank, library = min(8, min(shape) // 4) or 1, native.library()
    assert library is not None and shape[0] * shape[1] >= ALONE
    x = matrices(1, *shape, dtype=torch.float32)
    p = followed(x, rank, 3)
    wanted, following = deflate(x, p)
    found = []
    for threads in (1, 2, 5):
        y, q, squares = x.clone(), p.clone(), torch.zeros(1)
        table = np.array([[y.data_ptr(), q.data_ptr(), *shape, rank, 0]], dtype=np.int64)
        library.lopt_deflate(table.ctypes.data, 1, squares.data_ptr(), threads)
        found.append((y, q, squares))
        assert gap((y, q), (wanted, following)) < 1e-4
        torch.testing.assert_close(squares[0], wanted.square().sum(), rtol=1e-4, atol=0)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


@needs_compiler
def test_small_matrices_are_shared_by_threads():
    library, found = native.library(), []
    assert library is not None
    xs = [matrices(1, 150, 100 + k, dtype=torch.float32) for k in range(12)]
    ps = [followed(x, 8, 3) for x in xs]
    assert sum(x.numel() for x in xs) > ALONE > max(x.numel() for x in xs)
    for threads in (1, 2, 5):
        held, squares = [(x.clone(), p.clone()) for x, p in zip(xs, ps, strict=True)], torch.zeros(len(xs))
        table = [[x.data_ptr(), p.data_ptr(), *x.shape[1:], 8, k] for k, (x, p) in enumerate(held)]
        table = np.array(table, dtype=np.int64)
        library.lopt_deflate(table.ctypes.data, len(table), squares.data_ptr(), threads)
        found.append((held, squares))
    wanted = [deflate(x, p) for x, p in zip(xs, ps, strict=True)]
    assert gap(found[0][0], wanted) < 1e-4
    assert all(gap(other, found[0]) == 0 for other in found[1:])


@pytest.mark.parametrize("deflation", [-1, 9, 4.0])
def test_no_more_than_the_kernels_are_made_for(deflation):
    with pytest.raises(InvalidInput, match=f"deflation: {deflation}; it must be 0, which is none, to 8"):
        Neuron(deflation=deflation)


def test_beside_orthogonalise_it_does_nothing():
    space = WeightSpace({"hidden": "k:16, h:12"})
    state = Neuron(orthogonalise=True, deflation=8).init_state(space, tensors(space, 0))
    assert "subspace" not in state.tensors["hidden"]
