"""python -m benchmark.tracing_fuzz: traces random programs, and checks every symmetry that is found numerically.

How the parts fit: `draw` writes a random program (tracing_programs.py); `check` traces it without
verification and verifies what came out: a group that fails is a false symmetry, a defect of `lopt.trace`. `shrink`
makes a failing program as small as it can. `mutate` leaves one site out of a space that holds: the verifier must see
it, or it could not have seen a false symmetry either. `fuzz` does all of it and counts.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmark import tracing_moves as tracing_moves  # its writers of lines
from benchmark.tracing_lines import first_lines
from benchmark.tracing_programs import NAME, Builder, NoLine, Program, Running, finished, one_line, read_by, read_out
from lopt.axes import Axis, Fixed, Group, children, leaves
from lopt.errors import InvalidInput
from lopt.tracing import analyse
from lopt.verification.verify import TOLERANCE, telling_permutations
from lopt.weight_space import WeightSpace

FEWEST_LINES, MOST_LINES = 5, 25
MUTATED = 8  # one program in so many is tried with a wrong space, too: it takes as long as ten right ones


def draw(seed: int | str) -> Program:
    """One random program of 5 to 25 lines, and a few that read out what is left over.

    >>> draw(0) == draw(0)
    True
    """
    rng = random.Random(f"program {seed}")
    while True:
        builder = Builder(rng, torch.Generator().manual_seed(rng.randrange(2**31)))
        first_lines(builder)
        wanted = rng.randint(FEWEST_LINES, MOST_LINES)
        for _ in range(10 * wanted):
            if len(builder.lines) >= wanted:
                break
            with suppress(NoLine):
                builder.execute(one_line(builder))
        if outputs := read_out(builder):
            return finished(builder, outputs)


@dataclass(frozen=True)
class Outcome:
    """What became of one program.

    Attributes:
        space: the symmetry that was traced; None if the trace raised.
        failed: groups that are no symmetry.
        problem: the trace raised, or the verifier could not judge; empty if neither.
    """

    space: WeightSpace | None
    failed: tuple[str, ...] = ()
    problem: str = ""


def check(program: Program, seed: int = 0) -> Outcome:
    """Traces a program and verifies the result."""
    module = program.module(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            space = analyse(module, verify=False, **module.examples).space
    except Exception as error:  # any error of the tracer's is a finding
        return Outcome(None, (), f"trace: {type(error).__name__}: {error}")
    if not space.groups or holds(space, module):
        return Outcome(space)
    try:
        return Outcome(space, space.verify(module, **module.examples).failed)
    except InvalidInput as error:  # amplified rounding
        return Outcome(space, (), f"verify: {error}")


def holds(space: WeightSpace, module: Running, draws: int = 2) -> bool:
    """Whether outputs stay, and gradients move with the parameters, under random permutations of all groups at once.

    The same question as `space.verify`, asked in the plainest way: a program has random float64 parameters, no state
    and no buffers. It is what makes 5,000 programs quick; whatever fails here is judged by `verify`.
    """
    weights = {name: p.detach() for name, p in module.named_parameters()}
    outputs, gradients = _run(module, weights)
    generator = torch.Generator().manual_seed(0)
    for permutations in telling_permutations(space, draws, generator):
        moved, slopes = _run(module, space.permute(weights, permutations))
        wanted = space.permute(gradients, permutations)
        pairs = [*zip(outputs, moved, strict=True), *((wanted[name], slopes[name]) for name in wanted)]
        floor = TOLERANCE * max((float(g.abs().max()) for g in wanted.values() if g.numel()), default=0.0)
        if not all(_close(a, b, floor) for a, b in pairs):
            return False
    return True


def _run(module: Running, weights: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and the gradients of a random projection of them."""
    leaves_ = {name: w.clone().requires_grad_() for name, w in weights.items()}
    outputs = list(module.run(leaves_, {k: x.clone() for k, x in module.examples.items()}))
    generator = torch.Generator().manual_seed(1)
    terms = [(t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in outputs if t.requires_grad]
    try:
        found = torch.autograd.grad(torch.stack(terms).sum(), list(leaves_.values()), allow_unused=True)
    except RuntimeError:  # nothing depends on a parameter, or a value that was written over would be needed
        return [t.detach() for t in outputs], {}
    zeros = {name: torch.zeros_like(w) for name, w in weights.items()}
    return [t.detach() for t in outputs], {k: zeros[k] if g is None else g for k, g in zip(zeros, found, strict=True)}


def _close(a: Tensor, b: Tensor, floor: float) -> bool:
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    return bool((a - b).abs().max() <= TOLERANCE * max(float(a.abs().max()), floor))


# --- smaller programs that fail alike --------------------------------------------------------------------------------


def shrink(program: Program, fails: Callable[[Program], bool], most: int = 2000) -> Program:
    """A program that fails, with as few outputs, lines and operands as were found to do."""
    tries = 0
    again = True
    while again and tries < most:
        again = False
        for smaller in _smaller(program):
            tries += 1
            if tries >= most:
                break
            if _fails(smaller, fails):
                program, again = smaller, True
                break
    return program


def _fails(program: Program, fails: Callable[[Program], bool]) -> bool:
    try:
        return fails(program)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, SyntaxError, NameError, AttributeError):
        return False  # it does not run


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with one thing less."""
    for name in program.outputs if len(program.outputs) > 1 else ():
        yield replace(program, outputs=tuple(o for o in program.outputs if o != name)).pruned()
    for i, line in reversed(list(enumerate(program.lines))):
        rest = (*program.lines[:i], *program.lines[i + 1 :])
        yield replace(program, lines=rest).pruned()
        made = NAME.match(line)
        shapes = _shapes(program) if made else {}
        for old in dict.fromkeys(read_by(line)):
            if made and shapes.get(old) == shapes.get(made[0]):  # its result is replaced by what it reads
                yield _renamed(replace(program, lines=rest), made[0], old).pruned()


def _renamed(program: Program, name: str, other: str) -> Program:
    def change(text: str) -> str:
        return re.sub(rf"\b{name}\b", other, text)

    return replace(program, lines=tuple(map(change, program.lines)), outputs=tuple(map(change, program.outputs)))


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    module = program.module()
    values = {"torch": torch, "F": torch.nn.functional, **dict(module.named_parameters()), **module.examples}
    exec("\n".join(program.lines), values)
    return {name: tuple(t.shape) for name, t in values.items() if isinstance(t, torch.Tensor)}


# --- wrong spaces ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A space with one site of one group fixed, and the space in which that site alone is free."""

    space: WeightSpace
    alone: WeightSpace

    def is_wrong(self, program: Program) -> bool:
        """Whether to permute the site alone changes something. If nothing does, to leave it out is right, too: a bias
        that softmax cancels, a value that is never used."""
        return not all(holds(self.alone, program.module(seed)) for seed in (1, 2))


def mutate(space: WeightSpace, rng: random.Random) -> Mutant | None:
    """Leaves out a random site; None if no group has two sites in the parameters."""
    sites = [
        (name, k, index, leaf)
        for name, axes in space.items()
        for k, axis in enumerate(axes)
        for index, leaf in enumerate(leaves(axis))
        if isinstance(leaf, Group)
    ]
    every = [leaf.name for *_, leaf in sites]
    outer = {name for *_, leaf in sites for name in leaf.within}
    fitting = [site for site in sites if every.count(site[3].name) > 1 and site[3].name not in outer]
    if not fitting:
        return None
    name, k, index, leaf = rng.choice(fitting)

    def changed(axes: tuple[Axis, ...], new: Axis) -> tuple[Axis, ...]:
        return (*axes[:k], _with_leaf(axes[k], index, new), *axes[k + 1 :])

    fixed = {n: changed(axes, Fixed(leaf.size)) if n == name else axes for n, axes in space.items()}
    alone: dict[str, tuple[Axis, ...]] = {n: tuple(Fixed(a.size) for a in axes) for n, axes in space.items()}
    alone[name] = tuple(map(_still, changed(space[name], Fixed(leaf.size, "site"))))
    return Mutant(WeightSpace(fixed, space.buffers), WeightSpace(alone).relaxed())


def _with_leaf(axis: Axis, index: int, leaf: Axis) -> Axis:
    """The axis with another leaf in the place of its index-th."""
    if isinstance(axis, Fixed | Group):
        return leaf
    parts = list(children(axis))
    for i, part in enumerate(parts):
        count = len(list(leaves(part)))
        if index < count:
            parts[i] = _with_leaf(part, index, leaf)
            break
        index -= count
    return type(axis)(tuple(parts))


def _still(axis: Axis) -> Axis:
    """The axis with everything fixed but the site."""
    if isinstance(axis, Fixed | Group):
        return axis if isinstance(axis, Fixed) and axis.name == "site" else Fixed(axis.size)
    return type(axis)(tuple(map(_still, children(axis))))


# --- many ------------------------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """Counts over many programs.

    Attributes:
        false: programs with a false symmetry, by number, made small.
        raised: what the trace raised, with the number of the program.
        refused: programs that the verifier could not judge, with its words.
        mutants, caught: wrong spaces, with one site left out, and how many of them the verifier found to be wrong.
        missed: the numbers of the programs whose mutant it did not.
    """

    programs: int = 0
    lines: int = 0
    with_groups: int = 0
    groups: int = 0
    false: dict[int, str] = field(default_factory=dict)
    raised: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    mutants: int = 0
    caught: int = 0
    missed: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        n = max(1, self.programs)
        return (
            f"{self.programs} programs of {self.lines / n:.1f} lines in {self.seconds:.0f} s: "
            f"{len(self.false)} with a false symmetry, {len(self.raised)} where the trace raised, "
            f"{len(self.refused)} that the verifier could not judge\n"
            f"{self.with_groups / n:.1%} of the programs have a group; {self.groups / n:.2f} groups on average\n"
            f"the verifier caught {self.caught} of {self.mutants} spaces with one site left out"
            f" ({self.caught / max(1, self.mutants):.1%})"
        )


def fuzz(programs: int, seed: int = 0) -> Summary:
    """Draws, traces and verifies programs, and makes small those that fail; of every eighth one also a mutant."""
    summary, start = Summary(), time.perf_counter()
    for i in range(programs):
        number = seed * 1_000_000 + i
        program = draw(number)
        outcome = check(program)
        summary.programs += 1
        summary.lines += len(program.lines)
        if outcome.problem:
            kind = summary.raised if outcome.space is None else summary.refused
            kind[number] = outcome.problem
        if outcome.failed:
            smallest = shrink(program, lambda p: bool(check(p).failed))
            summary.false[number] = f"{smallest}\n{check(smallest).space}\nfailed: {check(smallest).failed}"
        if outcome.space is not None and outcome.space.groups and not outcome.problem and not outcome.failed:
            summary.with_groups += 1
            summary.groups += len(outcome.space.groups)
            if i % MUTATED == 0:
                _try_mutant(summary, number, program, outcome.space)
    summary.seconds = time.perf_counter() - start
    return summary


def _try_mutant(summary: Summary, number: int, program: Program, space: WeightSpace) -> None:
    mutant = mutate(space, random.Random(f"mutant {number}"))
    if mutant is not None and mutant.is_wrong(program):
        module = program.module()
        try:
            found = not mutant.space.verify(module, **module.examples)
        except InvalidInput:  # amplified rounding
            return
        summary.mutants += 1
        summary.caught += found
        summary.missed += [] if found else [number]


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.tracing_fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, help="print one program by its number, and its outcome")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.show is not None:
        program = draw(options.show)
        print(program, check(program), sep="\n\n")
        return 0
    summary = fuzz(options.programs, options.seed)
    for what in ("false", "raised", "refused"):
        for number, text in getattr(summary, what).items():
            print(f"--- {what}: program {number}\n{text}\n")
    print(summary, *([f"not caught: programs {summary.missed}"] if summary.missed else []), sep="\n")
    return bool(summary.false or summary.raised)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
