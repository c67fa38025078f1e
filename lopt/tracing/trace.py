"""`trace`: any nn.Module -> its WeightSpace, verified. `analyse` tells in addition what was fixed, and why.

The forward runs on the example several times (see labels.py for why): until no axis is sliced that could be blocks,
and then, if the values of tensors decide what runs, with other random weights until every parameter was used. The
passes of the second kind add to one set of constraints: the symmetry holds on every path that was seen.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_hooks

from lopt.errors import InvalidInput
from lopt.tracing import labels
from lopt.tracing import operators as operators  # registers the rules
from lopt.tracing.algebra import fix, leaves, touch
from lopt.tracing.call import Reason, Record
from lopt.tracing.labels import Labels, Origin
from lopt.tracing.space import INPUT, OUTPUT, weight_space
from lopt.tracing.tracer import Escapes, Tracer
from lopt.verification import Verification
from lopt.verification.isolation import Snapshot, check_module, isolated, seed_everything, uncompiled
from lopt.verification.randomise import randomised
from lopt.verification.tensor_tree import map_tensors, tensors_in
from lopt.weight_space import WeightSpace

# Buffers that follow the parameters: what training sees of its own channels. Others are constants.
FOLLOWING_BUFFERS = ("running_mean", "running_var", "weight_u", "weight_v", "_u", "_v")
PASSES = 5  # for blocks
ATTEMPTS = 6  # to reach every parameter under data-dependent routing
NEVER_USED = "not used by the example"


class TraceWarning(UserWarning):
    """A trace found less symmetry than there may be, or claimed one that failed its verification."""


@dataclass(frozen=True)
class Analysis:
    """What a trace found.

    Attributes:
        space: the symmetry.
        reasons: for each parameter and axis with a fixed part, why it is fixed.
        unknown: operators that were not understood, and what they cost: the elements that they alone fixed are not
            told apart, so this counts the parameters' axes that name them as the reason.
        unused: parameters that the example did not use, or not wholly; what was not used is fixed.
        routed: whether values of tensors decided what ran, so that the symmetry is that of the paths that were seen.
        verification: the numeric proof; None if there was none.
    """

    space: WeightSpace
    reasons: Mapping[tuple[str, int], tuple[str, ...]]
    unknown: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    routed: bool = False
    verification: Verification | None = None

    def warnings(self) -> Iterator[str]:
        """What a person should know."""
        for reason, axes in self.unknown.items():
            yield f"{reason}: what it touches is fixed ({axes} axes of parameters). lopt.tracing.register gives it one"
        if self.unused:
            yield f"{NEVER_USED}, so fixed there: {_listed(self.unused)}. Trace with an example that uses them"
        if self.verification is not None and self.verification.failed:
            yield (
                f"groups {_listed(self.verification.failed)} were traced but failed the numeric check, so they are "
                "fixed. Please report the module: a rule of an operator is wrong"
            )


def trace(
    module: nn.Module,
    *inputs: Any,
    training: bool = False,
    verify: bool = True,
    output: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> WeightSpace:
    """The permutation symmetry of any network, derived from one run and verified numerically.

    Every operator of the forward says how permutations of its inputs permute its outputs; what is not understood is
    fixed. So a group that is found is a true symmetry: of the path that ran, the example's shapes, and the mode.

    Args:
        module: on one device. It is as before afterwards: mode, buffers, attributes, random state.
        inputs, kwargs: an example, with a batch of at least 2. Inputs and outputs count as fixed.
        training: the mode of the run. In training mode dropout's random masks fix what they meet.
        verify: check the result with random weights (`WeightSpace.verify`); a group that fails becomes fixed. There
            are no values to check if the parameters are fake or on the meta device.
        output: picks the tensors that matter out of the module's output; by default all. A cache that a language model
            returns fixes its heads: pass `output=lambda out: out.logits`, or `use_cache=False`.

    Returns:
        The space of `module.named_parameters()`; a parameter with several names goes by the first.

    Raises:
        InvalidInput: lazy or quantised parameters, or parameters on several devices. The module's own errors pass
            through.

    Warns:
        TraceWarning: operators without a rule, parameters that were not used, groups that failed.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> trace(net, torch.randn(5, 3))
    WeightSpace({'0.weight': 'g0:8, in=3', '0.bias': 'g0:8', '2.weight': 'out=2, g0:8', '2.bias': 'out=2'})
    """
    found = analyse(module, *inputs, training=training, verify=verify, output=output, **kwargs)
    for message in found.warnings():
        warnings.warn(message, TraceWarning, stacklevel=2)
    return found.space


def analyse(
    module: nn.Module,
    *inputs: Any,
    training: bool = False,
    verify: bool = True,
    output: Callable[[Any], Any] | None = None,
    **kwargs: Any,
) -> Analysis:
    """`trace`, with everything that it learned and without warnings."""
    check_module(module, values=False)
    parameters = dict(module.named_parameters())
    valued = not any(p.device.type == "meta" or isinstance(p, FakeTensor) for p in parameters.values())
    found = _derive(_Example(module, inputs, kwargs, output, training, valued))
    if not (verify and valued and found.space.groups):
        return found
    proof = found.space.verify(module, *inputs, training=training, output=output, **kwargs)
    kept = found.space.fixed(proof.failed) if proof.failed else found.space
    return Analysis(kept, found.reasons, found.unknown, found.unused, found.routed, proof)


class _Example:
    """A module and its inputs, ready to run again and again."""

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Callable[[Any], Any] | None,
        training: bool,
        valued: bool,
    ) -> None:
        self.module, self.training, self.valued = module, training, valued
        self.inputs, self.kwargs, self.output = inputs, kwargs, output
        self.parameters = dict(module.named_parameters())
        self.buffers = {name: b for name, b in module.named_buffers() if name.rsplit(".")[-1] in FOLLOWING_BUFFERS}
        self.fake = next((p.fake_mode for p in self.parameters.values() if isinstance(p, FakeTensor)), None)

    @contextmanager
    def ready(self) -> Iterator[Snapshot]:
        """The module may be run, and is as before at the end."""
        with isolated(self.module, self.training, copy=self.valued) as snapshot, ExitStack() as stack:
            fast = torch.backends.mha.get_fastpath_enabled()
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(uncompiled())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.inference_mode(False))  # in which operators would come in one piece
            stack.enter_context(torch.no_grad())
            yield snapshot

    def _placed(self, tensor: Tensor) -> Tensor:
        """An input of this run's own, where the parameters are."""
        if self.fake is not None and not isinstance(tensor, FakeTensor):
            return self.fake.from_tensor(tensor)
        if not self.valued and self.fake is None:
            return tensor.to("meta")
        return tensor.detach().clone()

    def run(self, tracer: Tracer, location: _Location) -> Any:
        """The forward under a tracer; the outputs that matter."""
        inputs, kwargs = map_tensors((self.inputs, self.kwargs), self._placed)
        for tensor in tensors_in((inputs, kwargs)):
            tracer.set(tensor, labels.constant(tensor.shape, Reason(INPUT, "")))
        with ExitStack() as stack:
            if self.fake is not None:
                stack.enter_context(self.fake)
            stack.enter_context(location)
            stack.enter_context(tracer)
            stack.enter_context(Escapes(tracer))
            out = self.module(*inputs, **kwargs)
            return self.output(out) if self.output else out


class _Location:
    """The submodule that runs, by hooks that every module calls."""

    def __init__(self, module: nn.Module) -> None:
        self._names = {id(part): name for name, part in module.named_modules()}
        self._stack: list[str] = []

    def __call__(self) -> str:
        return self._stack[-1] if self._stack else ""

    def __enter__(self) -> None:
        self._hooks = (
            module_hooks.register_module_forward_pre_hook(self._enter),
            module_hooks.register_module_forward_hook(self._leave, always_call=True),
        )

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._stack.clear()

    def _enter(self, part: nn.Module, inputs: Any) -> None:
        self._stack.append(self._names.get(id(part), type(part).__name__))

    def _leave(self, part: nn.Module, inputs: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()


class _State:
    """The labels of parameters and buffers through the passes over one set of constraints."""

    def __init__(self, example: _Example, wanted: set[Origin]) -> None:
        self.record, self.wanted, self.example = Record(), wanted, example

        def label(name: str, tensor: Tensor) -> Labels:
            def origin(axis: int) -> Origin:
                return ("parameter", name, axis)

            blocked = [axis for axis in range(tensor.dim()) if origin(axis) in wanted]
            return labels.fresh(tensor.shape, origin, blocked)

        self.parameters = {name: label(name, p) for name, p in example.parameters.items()}
        self.buffers = {name: label(name, b) for name, b in example.buffers.items()}

    def run(self) -> None:
        """One pass."""
        location = _Location(self.example.module)
        tracer = Tracer(self.record, self.wanted, location)
        for tensors, found in ((self.example.parameters, self.parameters), (self.example.buffers, self.buffers)):
            for name, tensor in tensors.items():
                tracer.set(tensor, found[name])
        for tensor in tensors_in(self.example.run(tracer, location)):
            for term in labels.terms(tracer.labels(tensor), Reason(OUTPUT, "")):
                touch(term)
                fix(term, Reason(OUTPUT, ""))

    def unused(self) -> list[str]:
        """Parameters that no operator has used, or not wholly."""
        return [
            name
            for name, made in self.parameters.items()
            if id(self.example.parameters[name]) not in self.record.used
            or any(not leaf.touched and leaf.size > 1 for term in labels.all_terms(made) for leaf in leaves(term))
        ]


def _derive(example: _Example) -> Analysis:
    with example.ready() as snapshot:
        state = _with_blocks(example, snapshot)
        for attempt in range(ATTEMPTS):
            if not (state.record.routed and state.unused() and example.valued):
                break
            _again(snapshot, seed=attempt, randomise=True)
            try:
                state.run()
            except Exception:  # a module need not run with every weights, such as those that it makes an index of
                break
    unused = state.unused()
    for made in state.parameters.values():
        for leaf in (leaf for term in labels.all_terms(made) for leaf in leaves(term)):
            if not leaf.touched:
                fix(leaf, NEVER_USED)
    space = weight_space(state.parameters, state.buffers, state.record)
    reasons = _reasons(state.parameters)
    costs = Counter(reason for found in reasons.values() for reason in found)
    unknown = {str(reason): costs[str(reason)] for reason in state.record.unknown}
    return Analysis(space, reasons, unknown, tuple(unused), state.record.routed)


def _with_blocks(example: _Example, snapshot: Snapshot) -> _State:
    """The first pass in which no axis is sliced that is not blocks already. Blocks of a parameter that turned out to
    be permuted alike are none in the next one: single entries have fixed the axis for nothing."""
    wanted: set[Origin] = set()
    refused: set[Origin] = set()
    state = _State(example, wanted)
    for attempt in range(PASSES):
        state = _State(example, set(wanted))
        _again(snapshot)
        state.run()
        useless: set[Origin] = {
            ("parameter", name, made.along)
            for name, made in state.parameters.items()
            if made.blocks and labels.agree(made)
        }
        sliced = state.record.sliced - refused
        if attempt == PASSES - 1 or (sliced <= wanted and not useless):
            break
        refused |= useless
        wanted = (wanted | sliced) - refused
    return state


def _again(snapshot: Snapshot, seed: int = 0, randomise: bool = False) -> None:
    """The module as at first, or with other weights."""
    if randomise:
        generator = torch.Generator().manual_seed(seed)
        snapshot.use(lambda _, data: randomised(data.clone(), 1.0, generator))
    seed_everything(seed)


def _reasons(parameters: Mapping[str, Labels]) -> dict[tuple[str, int], tuple[str, ...]]:
    found: dict[tuple[str, int], dict[str, None]] = {}
    for name, made in parameters.items():
        for axis, term in enumerate(labels.terms(made, "a stack")):
            for leaf in leaves(term):
                if leaf.reason is not None and leaf.size > 1:
                    found.setdefault((name, axis), {})[str(leaf.reason)] = None
    return {place: tuple(reasons) for place, reasons in found.items()}


def _listed(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


__all__ = ["Analysis", "InvalidInput", "TraceWarning", "analyse", "trace"]
