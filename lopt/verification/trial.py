"""Running a module with given weights again and again, and measuring what a permutation of them changes.

`Runs` makes one run: outputs, and the gradients of a random projection of them. `Comparison` permutes some groups of a
weight space, or one parameter alone, and holds the run against the one before. verification.py decides with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lopt.verification.isolation import Snapshot, exact, exactly, random_state, seed_everything
from lopt.verification.noise import UniformNoise
from lopt.verification.randomise import randomised
from lopt.verification.tensor_tree import map_tensors, tensors_in

if TYPE_CHECKING:
    from lopt.weight_space import WeightSpace

_NUDGE = 1e-13  # relative change of the weights that measures how the network amplifies rounding
_AMPLIFIED = 1e-8  # a nudge that becomes this large makes the network too chaotic to judge: 1e5 times
_FLOOR = 1e-6  # what a weight does to the outputs below this share of their size, or of the largest, may be rounding


@dataclass(frozen=True)
class Errors:
    """How far a permutation changed the outputs, and the gradients; relative to their own size."""

    value: float = 0.0
    gradient: float = 0.0

    def __str__(self) -> str:
        return f"value {self.value:.1e}, gradient {self.gradient:.1e}"

    def within(self, tolerance: float) -> bool:
        """Whether both are at most `tolerance`; a NaN is not."""
        return self.value <= tolerance and self.gradient <= tolerance

    def worst(self, other: Errors) -> Errors:
        """The larger of each; NaN is the largest."""
        return Errors(_largest([self.value, other.value]), _largest([self.gradient, other.gradient]))


# --- one run ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    outputs: list[Tensor]
    gradients: dict[str, Tensor]  # empty if the outputs have no gradient
    note: str = ""


class Runs:
    """Runs the module with given weights, each time from the same state and the same random numbers."""

    def __init__(
        self,
        space: WeightSpace,
        module: nn.Module,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Callable[[Any], Any] | None,
        seed: int,
    ) -> None:
        self.space, self.module, self.seed = space, module, seed
        self.pick = output or (lambda result: result)
        self.inputs = map_tensors((inputs, kwargs), exactly)
        self.state, self.noisy, self.differentiable = Snapshot(module), False, True
        named = dict(module.named_parameters(remove_duplicate=False))
        self.parameters = {name: named[name] for name in space}
        self.buffers = dict(module.named_buffers())
        alias = {id(b): name for name, b in module.named_buffers(remove_duplicate=False) if name in space.buffers}
        self.buffers = {alias.get(id(b), name): b for name, b in self.buffers.items()}
        self.start = {name: t.detach().clone() for name, t in (self.parameters | self.buffers).items()}

    def draw(self, strength: float, generator: torch.Generator, everything: bool) -> tuple[dict[str, Tensor], Any]:
        """Random weights and inputs. The inputs, and the buffers that the space does not name, move if `everything`
        may: some are masks or tables that the network has to find as they are."""
        movable = self.start.keys() if everything else {*self.space, *self.space.buffers}
        weights = {k: randomised(t, strength, generator) if k in movable else t for k, t in self.start.items()}
        return weights, map_tensors(self.inputs, lambda t: randomised(t, strength, generator) if everything else t)

    def __call__(self, weights: Mapping[str, Tensor], inputs: Any) -> Run:
        try:
            run, random = self._once(weights, inputs)
        except RuntimeError:  # such as `out=`, which needs no_grad; the module's own errors come again
            if not self.differentiable:
                raise
            self.differentiable = False
            run, random = self._once(weights, inputs)
        if random and not self.noisy:
            self.noisy = True
            run, _ = self._once(weights, inputs)
        return run

    def _once(self, weights: Mapping[str, Tensor], inputs: Any) -> tuple[Run, bool]:
        """One run, and whether random numbers were drawn in it."""
        values = {id(t): weights[name] for name, t in (self.parameters | self.buffers).items()}
        self.state.use(lambda tensor, data: values.get(id(tensor), data).clone())
        try:
            for p in self.parameters.values():
                p.requires_grad_(p.is_floating_point() or p.is_complex())
            seed_everything(self.seed)
            args, kwargs = map_tensors(inputs, torch.clone)  # which the module may write into
            before = random_state(self.module)
            noise = UniformNoise() if self.noisy else nullcontext()
            with exact(), torch.set_grad_enabled(self.differentiable), noise:
                outputs = [t for t in tensors_in(self.pick(self.module(*args, **kwargs))) if _is_real(t)]
                random = random_state(self.module) != before
                gradients, note = self._gradients(outputs)
            return Run([t.detach().clone() for t in outputs], gradients, note), random
        finally:
            self.state.restore()

    def _gradients(self, outputs: list[Tensor]) -> tuple[dict[str, Tensor], str]:
        """Of a random projection of the outputs, the same in every run."""
        generator = torch.Generator().manual_seed(self.seed)
        terms = []
        for t in outputs:
            direction = torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device)
            if t.requires_grad and t.numel():
                # By RMS, so that no output drowns another one.
                size = t.detach().abs().square().mean().sqrt()
                terms.append((t * direction.conj()).sum().real / torch.where(size > 0, size, 1))
        wanted = {name: p for name, p in self.parameters.items() if p.requires_grad}
        if not terms or not wanted:
            return {}, "no output has a gradient; only values were compared" if wanted else ""
        try:
            found = torch.autograd.grad(torch.stack(terms).sum(), list(wanted.values()), allow_unused=True)
        except Exception as error:  # whatever somebody's backward raises; the values can still be compared
            return {}, f"no gradient: {str(error).splitlines()[0]}; only values were compared"
        pairs = zip(wanted.items(), found, strict=True)
        return {k: torch.zeros_like(p) if g is None else g.detach() for (k, p), g in pairs}, ""


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


# --- comparing two runs ----------------------------------------------------------------------------------------------


class Comparison:
    """The run with random weights, against which runs with permuted ones are held."""

    def __init__(self, runs: Runs, weights: dict[str, Tensor], inputs: Any) -> None:
        self.runs, self.space, self.weights = runs, runs.space, weights
        self.run = lambda weights: runs(weights, inputs)
        self.base = self.run(weights)

    def problem(self) -> str:
        """Why nothing can be told from the outputs, if so."""
        if not self.base.outputs:
            return "it returns no floating tensor"
        if not all(bool(t.isfinite().all()) for t in (*self.base.outputs, *self.base.gradients.values())):
            return "its outputs or gradients are NaN or infinite with random weights"
        return ""

    def noise_note(self) -> str:
        """In which sense the comparison holds of a module that draws random numbers."""
        return "it draws random numbers: they were the same at every position (noise.py)" if self.runs.noisy else ""

    def permuted(self, groups: Iterable[str], permutations: Mapping[str, Tensor]) -> Errors:
        """What changes when the named groups are permuted, the others not."""
        kept = set(groups)
        some = {name: table if name in kept else still(table) for name, table in permutations.items()}
        mine = {k: t for k, t in self.weights.items() if k in self.space or k in self.space.buffers}
        run = self.run({**self.weights, **self.space.permute(mine, some)})
        return self._errors(run, self.space.permute(self.base.gradients, some))

    def with_one_moved(self, parameter: str, permutations: Mapping[str, Tensor]) -> Errors:
        """What changes when one parameter alone is permuted. It should be a lot."""
        moved = self.space.permute({parameter: self.weights[parameter]}, permutations)
        mine = {k: g for k, g in self.base.gradients.items() if k == parameter}
        run = self.run({**self.weights, **moved})
        return self._errors(run, self.base.gradients | self.space.permute(mine, permutations))

    def chaos(self, generator: torch.Generator) -> str:
        """Why a difference may be no more than amplified rounding, if so."""
        nudged = {}
        for name, t in self.weights.items():
            if _is_real(t):
                factor = 1 + _NUDGE * (torch.rand(t.shape, generator=generator, dtype=torch.float64) * 2 - 1)
                nudged[name] = t * factor.to(t.device)
        errors = self._errors(self.run({**self.weights, **nudged}), self.base.gradients)
        if errors.within(_AMPLIFIED):
            return ""
        return f"weights that differ by {_NUDGE:.0e} change its outputs ({errors}): chaotic, or random without a seed"

    def first_order(self, parameter: str, change: Tensor) -> bool:
        """Whether the projected outputs, of size one, notice a change of one parameter: <gradient, change> is not zero,
        nor rounding."""
        gradient = self.base.gradients.get(parameter, torch.zeros((), device=change.device))
        terms = gradient.conj() * change
        return bool(terms.sum().abs() > _FLOOR * terms.abs().sum().clamp(min=_FLOOR))

    def gradient_matters(self, parameter: str) -> bool:
        """Whether the projected outputs depend on the parameter at all."""
        gradient = self.base.gradients.get(parameter, torch.zeros(()))
        return size_of(gradient) * size_of(self.weights[parameter]) > _FLOOR * _FLOOR

    def _errors(self, run: Run, gradients: Mapping[str, Tensor]) -> Errors:
        if [t.shape for t in run.outputs] != [t.shape for t in self.base.outputs]:
            return Errors(math.inf, math.inf)  # the weights decide about shapes
        values = [_distance(a, b, 0.0) for a, b in zip(self.base.outputs, run.outputs, strict=True)]
        if not run.gradients:
            return Errors(_largest(values))
        steepest = _FLOOR * max([size_of(g) for g in gradients.values()], default=0.0)
        floors = {name: max(steepest, _FLOOR / (size_of(self.weights[name]) or 1.0)) for name in gradients}
        slopes = [_distance(g, run.gradients[name], floors[name]) for name, g in gradients.items()]
        return Errors(_largest(values), _largest(slopes))


def _distance(a: Tensor, b: Tensor, floor: float) -> float:
    """Largest difference over the largest entry; two exact zeros are equal."""
    gap, size = size_of(a - b), max(size_of(a), floor)
    return 0.0 if gap == 0 else gap / size if size else math.inf


def size_of(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _largest(values: list[float]) -> float:
    return math.nan if any(math.isnan(v) for v in values) else max(values, default=0.0)


def still(table: Tensor) -> Tensor:
    return torch.arange(table.shape[-1]).expand(table.shape)
