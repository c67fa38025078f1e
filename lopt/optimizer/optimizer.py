"""LearnedOptimizer: a thin adapter from an update rule to `torch.optim`, and the only place that writes parameters.

A step gathers what takes part (gathering.py; parameters.py for names and axes), checks the gradients (nonfinite.py),
runs the rule, and writes (writing.py). The options are checked in options.py; loading is in saved_state.py.
"""

from __future__ import annotations

import copy
import math
import operator
import os
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from lopt.errors import InvalidInput
from lopt.optimizer.gathering import (
    Work,
    check_dense,
    complete,
    current_rates,
    descent,
    mean_loss,
    only_makes_state,
    without_autocast,
)
from lopt.optimizer.nonfinite import admit
from lopt.optimizer.options import DEFAULT_RULE, OPTIONS, check_options, find_rule
from lopt.optimizer.parameters import exchange, flatten, match
from lopt.optimizer.saved_state import Held, hold, release
from lopt.optimizer.writing import Targets, write, write_where
from lopt.rules.rule import Clock, State, Tensors, UpdateRule, Updates
from lopt.weight_space import WeightSpace

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class LearnedOptimizer(Optimizer):
    r"""Trains a network with a learned update rule; used like any optimizer of `torch.optim`.

    $$ p \leftarrow p - \mathrm{lr}\, u_\theta(p, g, \mathrm{state}) - \mathrm{lr}\, \lambda\, p $$

    Args:
        params: tensors, `named_parameters()`, or param groups; a group may have its own lr, weight_decay and maximize.
        lr: learning rate, a number or a tensor of one element; the default is the rule's own, at which it was
            meta-trained.
        rule: an `UpdateRule`, the path of a .safetensors file, or the name of a packaged one (`lopt.packaged_rules()`);
            by default "neuron-1", a meta-trained `lopt.rules.Neuron`, whose card is `lopt.read_card("neuron-1")`.
            Nothing is downloaded; for a rule on the hub pass `lopt.load_rule("hub:owner/repository")`.
        weight_decay: λ, decoupled.
        weight_space: the symmetry of the network. Without it, the rule's own if it has one, else every axis of every
            parameter is a group of its own. Parameters without names are matched in order; with names, a part of the
            network's parameters is enough.
        total_steps: how many steps there will be, if known; rules that see the horizon can use it.
        dataset_size, batch_size: how many examples there are to train on, and in the batch of a step (of all
            processes), if known. "neuron-1" takes smaller steps where each comes often, so that it does not learn them
            by heart; without `total_steps` there are taken to be twice the steps made so far, and at least 1,000. Leave
            them out where an example never comes twice as it was, as with augmentation.
        maximize: climb the objective.
        foreach: write all parameters with few launches (the default where they are plain tensors), or one by one.
        capturable: a step may be captured in a CUDA graph: nothing waits for the device, a step with a bad gradient is
            skipped on the device, and the state is held twice during a step.
        on_nonfinite: what to do if a gradient (or the loss) holds NaN or an infinity. "skip": leave weights and state
            as they were, count it in `skipped_steps`, warn once. "raise": the same, and raise. Finite numbers beyond
            1e14, whose squares would leave float32, are brought to 1e14 (in a capturable step they count as infinite).

    State: `optimizer.state[p]` holds "step", the number of updates of p, and what the rule's docstring lists, in
    float32 for parameters of half precision, on the device of p. It is made at the first step of p. A step with a
    learning rate of zero and gradients of zero makes the state and does no more (`torch.distributed.checkpoint` does
    this before it loads). The check of the gradients waits for the device once a step unless `capturable`.

    Raises:
        InvalidInput (a ValueError): a negative or non-finite lr, weight_decay, total_steps, dataset_size or batch_size;
            one of the last two without the other; an unknown rule; a weight space with other names or shapes; complex
            parameters; parameters on several devices.

    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = LearnedOptimizer(model.parameters(), total_steps=1)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor | None = None,
        *,
        rule: UpdateRule | str | os.PathLike[str] = DEFAULT_RULE,
        weight_decay: float = 0.0,
        weight_space: WeightSpace | None = None,
        total_steps: int | None = None,
        dataset_size: int | None = None,
        batch_size: int | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        on_nonfinite: Literal["skip", "raise"] = "skip",
    ) -> None:
        self.rule = find_rule(rule)
        lr = self.rule.default_lr if lr is None else lr
        given = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach}
        defaults = {**OPTIONS, **given, "capturable": capturable, "rule": type(self.rule).__name__}
        check_options(defaults)
        for name, count, what in (
            ("total_steps", total_steps, "steps"),
            ("dataset_size", dataset_size, "examples to train on"),
            ("batch_size", batch_size, "examples in the batch of a step"),
        ):
            if count is not None and not (isinstance(count, Real) and 1 <= count < math.inf):
                raise InvalidInput(f"Invalid {name}: {count!r}. Give the number of {what}, at least 1, or None")
        if (dataset_size is None) != (batch_size is None):
            raise InvalidInput(
                f"dataset_size={dataset_size}, batch_size={batch_size}: give both, from which a rule sees how often an "
                "example comes, or neither"
            )
        if on_nonfinite not in ("skip", "raise"):
            raise InvalidInput(f"on_nonfinite: {on_nonfinite!r}; it must be 'skip' or 'raise'")
        if capturable and on_nonfinite == "raise":
            raise InvalidInput("on_nonfinite: a captured step cannot raise; use 'skip', or capturable=False")
        self.total_steps, self.on_nonfinite = total_steps, on_nonfinite
        self.dataset_size, self.batch_size = dataset_size, batch_size
        bound = getattr(self.rule, "space", None)
        self._bound, self._rule_device = bound is not None, None
        self._given_space = weight_space if weight_space is not None else bound
        super().__init__(params, defaults)
        try:
            self._match()
            if bound is not None and self.weight_space != bound:
                raise InvalidInput(f"the parameters are {self.weight_space!r}")
        except InvalidInput as error:
            if bound is None:
                raise
            raise InvalidInput(
                f"rule: this {type(self.rule).__name__} was made for another network ({str(error).rstrip('.')}). Make "
                "one for this network, or use a rule for every network, such as lopt.rules.PerParameter(). "
                f"This one wants {bound!r}"
            ) from None

    @property
    def weight_space(self) -> WeightSpace:
        """The symmetry that the rule is told: of these parameters, in their order."""
        return self._parameters.space

    @property
    def skipped_steps(self) -> int:
        """How many steps left everything as it was because a gradient was not finite."""
        return int(sum(group["skipped_steps"] for group in self.param_groups))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; as in `torch.optim`. The optimizer stays as it was if they do not fit."""
        check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if hasattr(self, "_parameters"):  # after construction
            try:
                self._match()
            except InvalidInput:
                self.param_groups.pop()
                raise

    @overload
    def step(self, closure: None = None, *, loss: Tensor | float | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, loss: Tensor | float | None = None) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, loss: Tensor | float | None = None) -> float | None:
        """One update of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss, as in `torch.optim`.
            loss: the training loss of this step, for rules that look at it; a closure's value is used if it is absent.
                With several processes (`torch.distributed`) all give theirs, and the rule is told the mean.

        Returns:
            What the closure returned, else None.

        Raises:
            InvalidInput: a sparse gradient; a loss of several elements; with `on_nonfinite="raise"` a gradient that is
                not finite. Weights and state are as they were.
        """
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
        if loss is None and isinstance(returned, Tensor | float | int) and torch.as_tensor(returned).numel() == 1:
            loss = returned
        compiled = torch.compiler.is_compiling()
        work = self._gather(loss, compiled)
        if work is None:
            return returned
        with without_autocast(work.params):
            if compiled or work.finite is not None:
                self._advance_in_graph(work)
            else:
                for updates in self.rule.updates_(work.space, work.params, work.grads, work.state, work.clock):
                    write(work.targets, updates)
        return returned

    # --- the parts of a step -----------------------------------------------------------------------------------------

    # Outside of a compiled step, so that a new set of gradients and a bad gradient are seen. The private decorator,
    # since the public one imports the compiler, which takes longer than lopt itself.
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
    def _gather(self, loss: Tensor | float | None, compiled: bool) -> Work | None:
        """What takes part in this step, its state made where it is missing; None if the step is to change nothing."""
        self._follow()
        grads = {name: p.grad for name, p in self._parameters.tensors.items() if p.grad is not None}
        if not grads:
            return None
        check_dense(grads)
        device = next(iter(grads.values())).device
        told = None if loss is None else mean_loss(loss, device)
        grads, told, finite = admit(grads, told, self.param_groups, self.on_nonfinite)
        if finite is False:
            return None
        self._move_rule(device)
        space, params = self._parameters.part(tuple(grads), whole=self._bound)
        self._init_state({name: p for name, p in params.items() if name in grads and not self.state.get(p)})
        rates = [current_rates(group, compiled) for group in self.param_groups]
        if finite is True and only_makes_state(rates, grads):
            return None
        state = {name: self.state[p] for name, p in params.items() if self.state.get(p)}
        clock = Clock(
            torch.stack([state[name]["step"] for name in grads]).max(),
            _known(self.total_steps, device),
            told if told is None or not all(group["maximize"] for group in self.param_groups) else -told,
            _known(self.dataset_size, device),
            _known(self.batch_size, device),
        )
        index = self._parameters.groups
        targets = Targets(params, index if len(grads) == len(index) else {name: index[name] for name in grads}, rates)
        grads = descent(grads, self.param_groups, index)
        if len(grads) < len(params):
            grads, state = complete(self.rule, space, params, grads, state)
        return Work(space, params, grads, State(state, {}), clock, targets, None if finite is True else finite)

    def _advance_in_graph(self, work: Work) -> None:
        """The step by the pure form of the rule, with no decision on a value: to be captured or compiled."""
        updates, following = self.rule(work.space, work.params, work.grads, work.state, work.clock)
        for name, tensors in following.tensors.items():
            for key, new in tensors.items():
                old = work.state.tensors[name][key]
                old.copy_(new if work.finite is None else torch.where(work.finite, new, old))
        write_where(work.finite, work.targets, Updates(list(updates), list(updates.values())))

    def _match(self) -> None:
        self._parameters, self._flat = match(self.param_groups, self._given_space), flatten(self.param_groups)

    def _follow(self) -> None:
        """Wrappers that shard a network put their own parameters into the groups of a finished optimizer."""
        before, now = self._flat, flatten(self.param_groups)
        if len(before) != len(now):
            self._match()
        elif not all(map(operator.is_, before, now)):
            self._parameters, self._flat = exchange(self._parameters, before, now), now

    def _move_rule(self, device: torch.device) -> None:
        if self._rule_device != device:
            if any(x.device != device for x in self.rule.parameters()):
                self.rule = copy.deepcopy(self.rule).to(device)  # the caller's stays where it is
            self._rule_device = device

    def _init_state(self, params: Tensors) -> None:
        if params:
            fresh = self.rule.init_state(self._parameters.part(tuple(params))[0], params)
            for name, p in params.items():
                self.state[p].update(fresh.tensors[name])

    # --- saving and copying ------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, as in `torch.optim`, with the state in its own dtype, bit for bit.

        Raises:
            InvalidInput: the state is of another rule or another model; the optimizer stays as it was.
        """
        handle = self.register_load_state_dict_pre_hook(_hold_state)  # the last one: it sees what the others changed
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer keeps only defaults, state and param_groups; a copy needs the rest as well.
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in COPIED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for key in ("dataset_size", "batch_size"):  # of an earlier version it has none
            self.__dict__.setdefault(key, None)
        for group in self.param_groups:
            for key, value in OPTIONS.items():
                group.setdefault(key, value)
        for p, entry in self.state.items():
            if isinstance(entry, dict) and any(isinstance(x, Held) for x in entry.values()):
                self.state[p] = release(entry)
        self._rule_device = None


# What a copy needs beyond what Optimizer keeps.
COPIED = ("rule", "total_steps", "dataset_size", "batch_size", "on_nonfinite")
COPIED += ("_given_space", "_parameters", "_flat", "_bound")


def _known(count: float | None, device: torch.device) -> Tensor | None:
    return None if count is None else torch.full((), float(count), dtype=torch.float32, device=device)


def _hold_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """A pre-hook of `load_state_dict`: checks the state, and hides it from the cast to the parameters' dtype."""
    assert isinstance(optimizer, LearnedOptimizer)
    optimizer._follow()
    groups, saved = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved]:
        return None  # torch has an error for this
    mine = optimizer.defaults["rule"]
    if others := {group["rule"] for group in saved if group.get("rule", mine) != mine}:
        raise InvalidInput(
            f"state_dict: it is of an optimizer with the rule {', '.join(sorted(others))}, and this one has {mine}. "
            "Load the state of an optimizer with the same rule on the same model"
        )
    for group in saved:
        check_options({**optimizer.defaults, **group})
    found = optimizer._parameters
    names = {i: found.names[p] for i, p in zip(flatten(saved), flatten(groups), strict=True)}
    entries = {names[i]: entry for i, entry in state_dict["state"].items() if i in names and entry}
    held = hold(optimizer.rule, found.space, found.tensors, entries)
    state = {i: held.get(names.get(i, ""), entry) for i, entry in state_dict["state"].items()}
    return {**state_dict, "state": state}
