"""The numeric proof that a module has the symmetry that a weight space claims.

How the parts fit: `verify` runs the module in float64 with random weights (randomise.py), and with the same weights
permuted (trial.py; isolation.py sees to it that nothing is left behind). `telling_permutations` are the permutations;
`_find_failing` finds the groups that break, in halves, so that a true symmetry costs one run a draw; `_untested` finds
the groups whose permutation no output would have noticed. The result is a `Verification`.

If f(pθ) = f(θ) for all θ, then ∇f(pθ) = p ∇f(θ). Both are checked: the value sees the whole way from weights to
outputs, the gradient also what a saturated or a small value hides. Buffers and floating inputs are random, too: ones
and zeros are symmetric in ways that a network is not.

Why the tolerance is 1e-6. Rounding in float64 is 1e-16, so a true symmetry passes unless the network amplifies a
relative change more than 1e10 times; what a site left out changes is of the order of the output itself. Choices made by
comparison (top-k, argmax) depend on values that generic weights keep apart by far more than rounding. When a comparison
fails, the network's own amplification is measured by changing the weights by 1e-13: is that what was seen, the network
is chaotic at these weights, and milder ones are tried before anything is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lopt.axes import Group, leaves
from lopt.errors import InvalidInput
from lopt.verification.isolation import check_module, isolated
from lopt.verification.randomise import STRENGTHS
from lopt.verification.trial import Comparison, Errors, Runs, still

if TYPE_CHECKING:
    from lopt.weight_space import WeightSpace

TOLERANCE = 1e-6
_RETRIES = 4  # other random weights for groups that the first ones left without influence, such as dead neurons


class VerificationError(AssertionError):
    """A module does not have the symmetry that a weight space claims."""


@dataclass(frozen=True, repr=False)
class Verification:
    """What `WeightSpace.verify` found. True if no group failed.

    Attributes:
        joint: the errors under permutations of all groups at once.
        groups: for each group the errors of the smallest permutation that was tried and contains it: of all groups if
            these hold, of the group alone if it fails.
        failed: the groups that do not hold.
        untested: groups whose permutation no output could have noticed (a branch that did not run, experts that saw no
            token): nothing is known about them.
        notes: what could not be checked, in words.
    """

    joint: Errors
    groups: Mapping[str, Errors]
    failed: tuple[str, ...]
    untested: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.failed

    def __repr__(self) -> str:
        verdict = f"{len(self.failed)} of {len(self.groups)} groups failed" if self.failed else "holds"
        lines = [f"Verification: {verdict} ({len(self.groups)} groups jointly: {self.joint})"]
        lines += [f"  failed    {name}: {self.groups[name]}" for name in self.failed]
        lines += [f"  untested  {name}: no output depends on it here" for name in self.untested]
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])

    def and_then(self, other: Verification) -> Verification:
        """Both together: what either found to fail fails, and what either has tested is tested."""
        return Verification(
            self.joint.worst(other.joint),
            {name: errors.worst(other.groups[name]) for name, errors in self.groups.items()},
            tuple(name for name in self.groups if name in self.failed or name in other.failed),
            tuple(name for name in self.untested if name in other.untested),
            tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def raise_if_failed(self) -> Verification:
        """Itself, or a `VerificationError` that names what failed."""
        if self.failed:
            raise VerificationError(repr(self))
        return self


def verify(
    space: WeightSpace,
    module: nn.Module,
    *inputs: Any,
    training: bool = False,
    seed: int = 0,
    draws: int = 2,
    output: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> Verification:
    """See `WeightSpace.verify`."""
    if draws < 1:
        raise InvalidInput(f"draws: {draws}; at least one")
    check_module(module)
    _check_names(space, module)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad(), isolated(module, training=training, double=True):
        runs = Runs(space, module, inputs, kwargs, output, seed)
        found, strength = _first_verdict(runs, draws, generator)
        for _ in range(_RETRIES):
            if found.untested and not found.failed:
                comparison = Comparison(runs, *runs.draw(strength, generator, everything=strength == STRENGTHS[0]))
                found = found if comparison.problem() else found.and_then(_find_failing(comparison, draws, generator))
        return found


def _first_verdict(runs: Runs, draws: int, generator: torch.Generator) -> tuple[Verification, float]:
    """With the most thorough random weights for which one can be had, and their strength."""
    problem = ""
    for strength in STRENGTHS:
        try:
            comparison = Comparison(runs, *runs.draw(strength, generator, everything=strength == STRENGTHS[0]))
        except Exception:
            if strength == STRENGTHS[-1]:
                raise  # the module's own words: inputs that do not fit
            continue
        if problem := comparison.problem():
            continue
        found = _find_failing(comparison, draws, generator)
        if not found.failed or not (problem := comparison.chaos(generator)):
            return found, strength
    raise InvalidInput(f"module: {problem}; verify it with other inputs or weights, or on a smaller instance")


def _check_names(space: WeightSpace, module: nn.Module) -> None:
    """The space names every parameter, a shared one once, by any of its names; its buffers exist."""
    named = dict(module.named_parameters(remove_duplicate=False))
    of = {id(named[name]): name for name in reversed(list(space)) if name in named}
    space.check({of.get(id(p), name): p for name, p in module.named_parameters()})
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name, axes in space.buffers.items():
        shape = tuple(axis.size for axis in axes)
        if name not in buffers or tuple(buffers[name].shape) != shape:
            came = tuple(buffers[name].shape) if name in buffers else "no such buffer"
            raise InvalidInput(f"weight_space: buffer {name!r} of shape {shape}; the module has {came}")


# --- which groups ----------------------------------------------------------------------------------------------------


def _find_failing(comparison: Comparison, draws: int, generator: torch.Generator) -> Verification:
    space = comparison.space
    errors: dict[str, Errors] = dict.fromkeys(space.groups, Errors())
    joint, failed = Errors(), set()

    def search(names: list[str], permutations: Mapping[str, Tensor]) -> Errors:
        """The errors with the named groups permuted together. Finds those that break it, in halves."""
        came = comparison.permuted(names, permutations)
        holds = came.within(TOLERANCE)
        if not holds and len(names) > 1:
            half = len(names) // 2
            for part in (names[:half], names[half:]):
                search(part, permutations)
            if failed.isdisjoint(names):  # only together do they break it
                failed.update(names)
                errors.update({name: came for name in names})
            return came
        failed.update(() if holds else names)
        errors.update({name: errors[name].worst(came) for name in names})
        return came

    tables = telling_permutations(space, draws, generator)
    for permutations in tables:
        if names := [name for name in space.groups if name not in failed]:
            joint = joint.worst(search(names, permutations))
    moving = {name: next(t[name] for t in tables if _moves(t[name])) for name, g in space.groups.items() if _acts(g)}
    untested = [name for name in _untested(comparison, moving) if name not in failed]
    notes = tuple(note for note in (comparison.base.note, comparison.noise_note()) if note)
    return Verification(joint, errors, tuple(name for name in space.groups if name in failed), tuple(untested), notes)


def telling_permutations(space: WeightSpace, draws: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Random permutations of all groups, at least `draws` times, that tell any two groups apart.

    Two groups of two neurons are both swapped, or not, and a site that is given to the wrong one goes unnoticed. So no
    two groups (nor two positions of a group that depends on others) of one size get the same permutations in all draws,
    and none always stands still. That takes log2(groups) draws if all are pairs, and one if they are large.
    """
    slots: dict[int, int] = {}
    for name, table in space.random_permutations().items():
        size = space.groups[name].size
        slots[size] = slots.get(size, 0) + table.numel() // max(1, size)
    for size, count in slots.items():
        while size > 1 and math.factorial(min(size, 20)) ** draws <= count:
            draws += 1
    drawn = [space.random_permutations(generator) for _ in range(draws)]
    seen = {size: {tuple(range(size)) * draws} for size in slots}
    for name, group in space.groups.items():
        rows = [table[name].view(-1, group.size) for table in drawn] if _acts(group) else []
        for k in range(len(rows[0]) if rows else 0):
            while (key := tuple(i for table in rows for i in table[k].tolist())) in seen[group.size]:
                for table in rows:
                    table[k] = torch.randperm(group.size, generator=generator)
            seen[group.size].add(key)
    return drawn


def _acts(group: Group) -> bool:
    return group.size > 1


def _moves(table: Tensor) -> bool:
    return not torch.equal(table, still(table))


def _untested(comparison: Comparison, permutations: Mapping[str, Tensor]) -> list[str]:
    """Groups of which a wrong permutation, of one parameter alone, would have changed nothing.

    To first order the change is <gradient, permuted weight - weight>, which is at hand; only where that is zero is the
    module run again.
    """
    space, missed = comparison.space, []
    whole = {k: still(table) for k, table in (space.random_permutations() | dict(permutations)).items()}
    for name in permutations:
        sites = {k: sum(leaf.name == name for axis in axes for leaf in leaves(axis)) for k, axes in space.items()}
        sites = {k: count for k, count in sites.items() if count}
        some = whole | {name: permutations[name]}
        weights = comparison.weights
        if sum(sites.values()) == 1:  # permuting the only site is right, and changes nothing
            tested = any(comparison.gradient_matters(k) for k in sites)
        else:
            tested = any(comparison.first_order(k, space.permute({k: weights[k]}, some)[k] - weights[k]) for k in sites)
            tested = tested or any(not comparison.with_one_moved(k, some).within(TOLERANCE) for k in sites)
        missed += [] if tested else [name]
    return missed
