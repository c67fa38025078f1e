"""The compiled step against the same step as it is written; and where nothing can compile it."""

import os
import warnings

import pytest
import torch

from lopt.rules import Adam, Neuron
from meta_train import programs
from meta_train.estimators import PES
from meta_train.programs import CompilerWarning
from meta_train.unroll import draw, start, unroll
from tasks import ImageMLP, ParameterScaling, Quadratic

STEPS, PARTICLES = 3, 4


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Programs of one test are not those of another."""
    monkeypatch.setattr(programs, "_programs", type(programs._programs)())
    monkeypatch.setattr(programs, "_broken", [])


def setting(rule, family, device="cpu"):
    task = family.sample(torch.Generator().manual_seed(0))
    tasks = [family.sample(torch.Generator().manual_seed(i)) for i in range(PARTICLES)]
    noise = torch.Generator().manual_seed(1)
    theta = {
        k: (p.detach() + 0.05 * torch.randn(PARTICLES, *p.shape, generator=noise)).to(device)
        for k, p in rule.named_parameters()
    }
    population = start(rule, task, [t.init(torch.Generator().manual_seed(i)) for i, t in enumerate(tasks)])
    drawn = draw(tasks, "train", [torch.Generator(device).manual_seed(i) for i in range(PARTICLES)], STEPS)
    lr = torch.full((STEPS, PARTICLES), rule.default_lr, device=device)
    return theta, task, population, drawn, lr, torch.full((PARTICLES,), 9.0, device=device)


def compare(rule, family, device="cpu"):
    theta, task, population, drawn, lr, horizon = setting(rule, family, device)
    came = []
    for compiled in (False, True):
        with torch.no_grad():
            came.append(
                unroll(
                    rule,
                    theta,
                    task,
                    population,
                    drawn,
                    lr,
                    stacked_theta=True,
                    horizon=horizon,
                    weight_decay=0.1,
                    compiled=compiled,
                )
            )
    torch.testing.assert_close(came[0], came[1], rtol=1e-5, atol=1e-5)
    return came


def test_compiled_equals_eager():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompilerWarning)
        compare(Adam(), ParameterScaling(Quadratic(dimensions=3)))
    assert len(programs._programs) == 1


def test_a_program_takes_tensors_however_they_lie_in_memory():
    """A rule hands out its state as pieces of larger tensors; the program was made for tensors of their own."""

    def step(tree, x):
        return {"sum": tree["a"].t() + x, "a": tree["a"]}, x.narrow(1, 1, 2)

    def values(seed):
        return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))

    made = programs.program(step, "layout", ({"a": values(0)}, values(1).t().contiguous()))
    assert made is not step
    for a, x in (
        (values(2), values(3).t()),
        (values(4).t().contiguous().t(), values(5).t().contiguous()),
        (torch.stack([values(6)] * 2, -1)[..., 0], values(7).t().repeat(1, 2)[:, :3]),
    ):
        came, wanted = made({"a": a}, x), step({"a": a}, x)
        torch.testing.assert_close(came, wanted)
        assert all(leaf.is_contiguous() for leaf in (came[0]["sum"], came[0]["a"], came[1]))


def test_a_matrix_that_all_particles_share_makes_one_product():
    left, right = torch.randn(5, 3, 4), torch.randn(5, 4, 2)
    for one, other in ((left[:1].expand(5, -1, -1), right), (left, right[:1].expand(5, -1, -1))):
        torch.testing.assert_close(programs._product(one, other), torch.bmm(one, other))
        graph = programs.trace(lambda a, b: torch.func.vmap(torch.mm)(a, b), [one, other])
        called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert torch.ops.aten.mm.default in called and torch.ops.aten.bmm.default not in called
    assert programs._product(left, right) is NotImplemented
    graph = programs.trace(lambda a, b: torch.bmm(a, b), [left, right])
    assert torch.ops.aten.bmm.default in [node.target for node in graph.graph.nodes]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_compiled_equals_eager_as_a_cuda_graph():
    torch.manual_seed(0)
    compare(Neuron(width=4).cuda(), ImageMLP("digits", hidden=(4,), batch_size=8, device="cuda"), "cuda")


def test_a_program_serves_equal_populations_and_no_others(monkeypatch):
    made = []
    monkeypatch.setattr(programs, "_compile", lambda step, leaves, spec: made.append(1) or step)
    rule, family = Adam(), Quadratic(dimensions=3)
    compare(rule, family)
    compare(rule, family)
    assert len(made) == 1
    compare(rule, Quadratic(dimensions=3))  # another module, whose data may be others
    compare(Adam(), family)
    assert len(made) == 3
    monkeypatch.setattr(programs, "KEPT", 1)
    compare(rule, Quadratic(dimensions=4))
    assert len(programs._programs) == 3  # at the limit: a new one takes the place of the oldest


def test_without_a_compiler_it_runs_as_written_and_says_so_once(monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no working C++ compiler\nmore")

    monkeypatch.setattr("torch._inductor.compile", no_compiler)
    rule, family = Adam(), Quadratic(dimensions=3)
    with pytest.warns(CompilerWarning, match="not compiled.*no working C.. compiler. Install a C.. compiler, or"):
        eager, compiled = compare(rule, family)
    assert torch.equal(eager[1], compiled[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(rule, family)


def test_programs_are_kept_beside_what_else_is_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    programs.keep_programs()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    programs.keep_programs()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


def test_an_estimator_asks_for_the_program(monkeypatch):
    asked = []
    monkeypatch.setattr(programs, "_compile", lambda step, leaves, spec: asked.append(1) or step)
    rule, family = Adam(), Quadratic(dimensions=3)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    for compiled in (False, True):
        estimator = PES(pairs=2, truncation=2, horizon=4, compiled=compiled)
        estimator.estimate(rule, theta, family, estimator.start(rule, family, 0), 0)
        assert bool(asked) == compiled
