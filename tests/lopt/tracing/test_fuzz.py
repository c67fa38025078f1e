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
    assert summary.mutants >= 150
    assert summary.caught >= 0.98 * summary.mutants, summary.missed


def test_a_program_is_its_number():
    assert draw(7) == draw(7) != draw(8)
    assert check(draw(7)).space == check(draw(7)).space


@pytest.mark.parametrize("operator", ["aten::cumsum", "aten::sort", "aten::flip"])
def test_a_wrong_rule_is_found_and_made_small(operator, monkeypatch):
    """A rule for any order in the place of one that depends on it."""
    monkeypatch.setitem(RULES, operator, RULES["lopt::pointwise" if operator == "aten::flip" else "aten::_softmax"])
    name = operator.split("::")[1]
    for number in range(4000):
        program = draw(number)
        if f".{name}(" in str(program) and check(program).failed:
            break
    else:
        pytest.fail(f"no program of 4000 shows that the rule of {name} is wrong")
    small = shrink(program, lambda p: bool(check(p).failed), most=150)
    assert f".{name}(" in str(small) and len(small.lines) <= len(program.lines)
    assert check(small).failed


def test_both_verifiers_agree():
    """The quick one of the fuzzer and `WeightSpace.verify`, on true spaces and on false ones."""
    compared = 0
    for number in range(15):
        program = draw(number)
        space = check(program).space
        assert space is not None
        module = program.module()
        wrong = mutate(space, random.Random(number))
        if wrong is not None:
            assert holds(space, module) and space.verify(module, **module.examples)
            assert holds(wrong, module) == bool(wrong.verify(module, **module.examples))
            compared += 1
    assert compared >= 5


def test_a_false_space_does_not_hold():
    program = Program({"p0": (4, 3), "p1": (2, 4)}, {"x0": (2, 3)}, ("v1 = (x0 @ p0.T).cumsum(1) @ p1.T",), ("v1",))
    module = program.module()
    assert not holds(WeightSpace({"p0": "h:4, in=3", "p1": "out=2, h:4"}), module)
    assert holds(WeightSpace({"p0": "4, in=3", "p1": "out=2, 4"}), module)
    assert not check(program).space.groups


def test_mutate_fixes_one_site():
    space = WeightSpace({"a": "h:4*3, 2", "b": "g:2+h:4"})
    mutants = {repr(mutate(space, random.Random(i))) for i in range(20)}
    assert mutants == {
        repr(WeightSpace({"a": "4*3, 2", "b": "g:2+h:4"})),
        repr(WeightSpace({"a": "h:4*3, 2", "b": "g:2+4"})),
    }
    assert mutate(WeightSpace({"a": "h:4"}), random.Random(0)) is None


def test_the_command(capsys):
    assert main(["--programs", "3", "--seed", "5"]) == 0
    assert "3 programs" in capsys.readouterr().out
    assert main(["--show", "5000001"]) == 0
    assert "return" in capsys.readouterr().out
