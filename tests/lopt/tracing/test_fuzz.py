"""Random programs: no false symmetry, programs that say something, a verifier that sees, a fuzzer that finds."""

import random

import pytest
import torch

from benchmark.tracing_fuzz import check, draw, fuzz, holds, main, mutate, shrink
from benchmark.tracing_programs import Program
from lopt import WeightSpace
from lopt.tracing.registry import RULES


@pytest.fixture(scope="module")
def summary():
    torch.set_num_threads(1)
    return fuzz(300, seed=0)


def test_300_programs_have_no_false_symmetry(summary):
    assert summary.programs == 300
    assert not summary.false, "\n\n".join(summary.false.values())
    assert not summary.raised, summary.raised


def test_the_programs_say_something(summary):
    assert summary.lines >= 300 * 12
    assert summary.with_groups >= 0.8 * 300
    assert summary.groups >= 2.5 * 300
    assert len(summary.refused) <= 3, summary.refused


def test_the_verifier_is_not_blind_there(summary):
    assert summary.mutants >= 25
    assert summary.caught >= 0.98 * summary.mutants, summary.missed


def test_a_program_is_its_number():
    assert draw(7) == draw(7) != draw(8)
    assert check(draw(7)).space == check(draw(7)).space


def test_a_wrong_rule_is_found_and_made_small(monkeypatch):
    """softmax's rule (any order) in the place of cumsum's."""
    monkeypatch.setitem(RULES, "aten::cumsum", RULES["aten::_softmax"])
    for number in range(4000):
        program = draw(number)
        if ".cumsum(" in str(program) and check(program).failed:
            break
    else:
        pytest.fail("no program of 4000 shows that the rule of cumsum is wrong")
    small = shrink(program, lambda p: bool(check(p).failed), most=150)
    assert ".cumsum(" in str(small) and len(small.lines) < len(program.lines)
    assert check(small).failed


def test_both_verifiers_agree():
    """The quick one of the fuzzer and `WeightSpace.verify`, on true spaces and on false ones."""
    compared = 0
    for number in range(15):
        program = draw(number)
        space = check(program).space
        assert space is not None
        module = program.module()
        mutant = mutate(space, random.Random(number))
        if mutant is not None:
            assert holds(space, module) and space.verify(module, **module.examples)
            assert holds(mutant.space, module) == bool(mutant.space.verify(module, **module.examples))
            compared += 1
    assert compared >= 5


def test_a_false_space_does_not_hold():
    program = Program({"p0": (4, 3), "p1": (2, 4)}, {"x0": (2, 3)}, ("v1 = (x0 @ p0.T).cumsum(1) @ p1.T",), ("v1",))
    module = program.module()
    assert not holds(WeightSpace({"p0": "h:4, in=3", "p1": "out=2, h:4"}), module)
    assert holds(WeightSpace({"p0": "4, in=3", "p1": "out=2, 4"}), module)
    assert check(program).space == WeightSpace({"p0": "4, in=3", "p1": "out=2, 4"})


def test_mutate_fixes_one_site():
    space = WeightSpace({"a": "h:4*3, 2", "b": "g:2+h:4"})
    mutants = [mutate(space, random.Random(i)) for i in range(20)]
    found = {(repr(m.space), repr(m.alone)) for m in mutants if m is not None}
    assert found == {
        (
            repr(WeightSpace({"a": "4*3, 2", "b": "g:2+h:4"})),
            repr(WeightSpace({"a": "site:4*3, 2", "b": "6"})),
        ),
        (
            repr(WeightSpace({"a": "h:4*3, 2", "b": "g:2+4"})),
            repr(WeightSpace({"a": "12, 2", "b": "2+site:4"})),
        ),
    }
    assert mutate(WeightSpace({"a": "h:4"}), random.Random(0)) is None


def test_a_mutant_is_wrong_only_if_its_site_matters():
    lines = ("v1 = torch.softmax(x0 @ p0 + p1.sum() * p0.sum(), 1) @ p0.T", "v2 = (p1 * p1).sum() + p1.sum()")
    program = Program({"p0": (3, 4), "p1": (4,)}, {"x0": (2, 3)}, lines, ("v1", "v2"))
    space = WeightSpace({"p0": "3, h:4", "p1": "h:4"})
    wrong = {
        m.space["p1"] == space["p1"]: m.is_wrong(program)
        for m in map(lambda i: mutate(space, random.Random(i)), range(9))
        if m
    }
    assert wrong == {True: False, False: False}  # the sums do not care which of the two moves


def test_the_command(capsys):
    assert main(["--programs", "3", "--seed", "5"]) == 0
    assert "3 programs" in capsys.readouterr().out
    assert main(["--show", "5000001"]) == 0
    assert "return" in capsys.readouterr().out


# --- programs that once went wrong -----------------------------------------------------------------------------------

ONCE_WRONG = {
    # (n, k) @ (k, m), where n and k are one group: the columns m must not depend on the k that is summed.
    "a contraction whose group also stands outside": Program(
        {"p0": (3, 3), "p1": (3,), "p2": (3, 6)},
        {},
        ("v1 = torch.tanh(p1 @ p0) + p1", "v2 = torch.tanh(p0 @ p2).mean() + v1.square().mean()"),
        ("v2",),
    ),
    "the same in a Linear": Program(
        {"p0": (4, 2, 4), "p1": (2, 4), "p2": (16, 2)},
        {},
        ("v1 = F.linear(p0.transpose(0, 2) * p0, p1)", "v2 = v1.reshape(16) @ p2"),
        ("v2",),
    ),
    "the same in a convolution, whose space must not depend on the channels": Program(
        {"p0": (2, 3, 3), "p1": (3, 3, 1), "p2": (3, 3), "p3": (9, 2)},
        {},
        ("v1 = p1.squeeze() @ p2 + p2", "v2 = F.conv1d(p0, p1).reshape(2, 9) @ p3", "v3 = v1.square().mean() + v2"),
        ("v3",),
    ),
    # Slices of a parameter that were all fixed, but not made one: an endless loop.
    "fixed slices of a stack": Program(
        {"p0": (2, 2, 2), "p1": (4, 4), "p2": (4,), "p3": (4, 4)},
        {},
        (
            "v1 = F.pad(p0.reshape(2, 4), (0, 0, 1, -1))",
            "v2 = v1 + F.linear(torch.tanh(F.linear(v1, p1, p2)), p3)",
            "v3 = torch.cat(v2.chunk(2, 1)[::-1], 1)",
        ),
        ("v3",),
    ),
    # A group that stands only inside a concatenation is nothing that another one can depend on.
    "beside a concatenation": Program(
        {"p0": (3, 4), "p1": (2, 6)},
        {"x0": (3, 4)},
        ("v1 = torch.tanh(x0 @ p0.T)", "v2 = (torch.cat([v1, v1], 1).sum(0) * p1).sum().square()"),
        ("v2",),
    ),
    "places to unpool to": Program(
        {"p0": (3, 2), "p1": (3, 2)},
        {"x0": (2, 2, 4)},
        (
            "v1, v2 = F.max_pool1d(p0 @ x0, 2, return_indices=True)",
            "v3 = F.max_unpool1d((p1 @ x0)[:, :, :2], v2, 2).cumsum(2).mean((0, 1))",
        ),
        ("v3",),
    ),
}


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_programs_that_once_went_wrong(name):
    outcome = check(ONCE_WRONG[name])
    assert not outcome.failed and not outcome.problem
