"""The inner loop: a population of particles, each a copy of a task's weights and state, trained side by side.

Legend of shapes: P particles, T steps.

One particle's step is written once, for one particle (`population_step`), and `torch.func.vmap` runs it for the
population; the tests compare it with the loop over particles. With `compiled` the step is one program (programs.py).
All random numbers of an unroll are drawn before it starts, so nothing in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

from lopt.rules.rule import Clock, State, Tensors, UpdateRule
from lopt.weight_space import WeightSpace
from meta_train.programs import program
from tasks.task import Batch, Split, Task


class Population(NamedTuple):
    """P particles; every tensor has the particle axis first."""

    params: Tensors
    state: State
    step: Tensor  # (P,): updates made so far


def stack(trees: Sequence[Batch], dim: int = 0) -> Batch:
    """Stacks equal nests of tensors."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves, dim), *trees)


def start(rule: UpdateRule, task: Task, params: Sequence[Tensors]) -> Population:
    """A population at step 0, one particle for each set of initial weights."""
    stacked: Tensors = stack(params)
    state = vmap(lambda p: rule.init_state(task.weight_space, p))(stacked)
    device = next(iter(stacked.values())).device
    return Population(stacked, state, torch.zeros(len(params), device=device))


def draw(tasks: Sequence[Task], split: Split, generators: Sequence[torch.Generator], steps: int) -> Batch:
    """Batches of `steps` steps, (T, P, ...) each: every particle from its own task with its own generator.

    A particle's batches are drawn in one call, on the device of its generator. A task whose `draw` takes Python
    decisions, which cannot be batched, is asked step by step.
    """
    pairs = zip(tasks, generators, strict=True)
    return stack([_draw_steps(task, split, g, steps) for task, g in pairs], dim=1)


def _draw_steps(task: Task, split: Split, generator: torch.Generator, steps: int) -> Batch:
    """What a task draws for so many batches, (T, ...)."""
    before = generator.get_state()
    try:
        return vmap(lambda _: task.draw(split, generator), randomness="different")(torch.empty(steps))
    except (RuntimeError, ValueError):  # the draw reads a value of a tensor, or returns something else than tensors
        generator.set_state(before)
        return stack([task.draw(split, generator) for _ in range(steps)])


def sizes_of(tasks: Sequence[Task], like: Tensor) -> Tensor | None:
    """How many examples each task has to train on, and in a batch, (tasks, 2), of the kind of `like`.

    None: some have no end of them.
    """
    sizes = [task.sizes for task in tasks]
    return None if None in sizes else like.new_tensor(sizes)


def population_step(
    rule: UpdateRule,
    task: Task,
    space: WeightSpace,
    weight_decay: float,
    stacked_theta: bool,
    tell_loss: bool,
    known: Sequence[Tensor | None],
) -> Callable:
    """One step of all particles: (θ, params, state, now, drawn, lr, *known) -> (params, state, now, loss).

    Args:
        known: horizons and `sizes_of` the tasks, where the rule is to know them; else None.
    """

    def step(
        theta: Mapping[str, Tensor],
        params: Tensors,
        state: State,
        now: Tensor,
        drawn: Batch,
        lr: Tensor,
        end: Tensor | None,
        sizes: Tensor | None,
    ) -> tuple[Tensors, State, Tensor, Tensor]:
        batch = task.gather("train", drawn)
        grads, loss = grad_and_value(task.loss)(params, batch)
        data = (None, None) if sizes is None else sizes.unbind()
        inputs = (space, params, grads, state, Clock(now, end, loss if tell_loss else None, *data))
        updates, state = functional_call(rule, dict(theta), inputs)
        params = {k: p - lr * (updates[k] + weight_decay * p) for k, p in params.items()}
        return params, state, now + 1, loss

    told = (None if x is None else 0 for x in known)
    return vmap(step, in_dims=(0 if stacked_theta else None, 0, 0, 0, 0, 0, *told))


def unroll(
    rule: UpdateRule,
    theta: Mapping[str, Tensor],
    task: Task,
    population: Population,
    drawn: Batch,
    lr: Tensor,
    *,
    stacked_theta: bool = False,
    horizon: Tensor | None = None,
    sizes: Tensor | None = None,
    space: WeightSpace | None = None,
    weight_decay: float = 0.0,
    tell_loss: bool = True,
    compiled: bool = False,
) -> tuple[Population, Tensor]:
    """Trains every particle for T steps.

    Args:
        theta: the rule's parameters by name; with `stacked_theta` one set a particle, the particle axis first.
        drawn: the batches, (T, P, ...), as `draw` gives them.
        lr: learning rates, (T, P).
        horizon: the whole length of each particle's run, (P,), if the rule is to know it.
        sizes: how many examples each particle's task has, and in a batch, (P, 2), if the rule is to know it.
        space: what the rule is told of the symmetry; by default the weight space of the task.
        tell_loss: whether the rule is to know the loss of each step.
        compiled: run the step as one compiled program, without derivatives; made once for each kind of population.

    Returns:
        The population T steps later, and the training loss before each step, (T, P).
    """
    space = task.weight_space if space is None else space
    known = (horizon, sizes)
    step_all = population_step(rule, task, space, weight_decay, stacked_theta, tell_loss, known)
    params, state, now = population

    def at(t: int) -> Batch:
        return pytree.tree_map(lambda leaf: leaf[t], drawn)

    if compiled:
        example: tuple[Any, ...] = (theta, params, state, now, at(0), lr[0], *known)
        kind = (rule, task.population, space, weight_decay, stacked_theta, tell_loss)
        step_all = program(step_all, kind, example)
    losses = []
    for t in range(lr.shape[0]):
        params, state, now, loss = step_all(theta, params, state, now, at(t), lr[t], *known)
        losses.append(loss)
    return Population(params, state, now), torch.stack(losses)


def evaluate(task: Task | Sequence[Task], params: Tensors, split: Split, *, chunk_size: int | None = None) -> Tensor:
    """The loss of every particle on the fixed batch of a split, (P,).

    Args:
        task: of all particles; or one for each, of one population, whose batches may differ in their length.
        chunk_size: so many particles at a time, where all at once would not fit into memory.
    """
    if isinstance(task, Task):
        return vmap(task.loss, in_dims=(0, None), chunk_size=chunk_size)(params, task.evaluation_batch(split))
    places: dict[int, list[int]] = {}
    for place, one in enumerate(task):
        places.setdefault(id(one), []).append(place)
    first = next(iter(params.values()))
    losses = first.new_empty(len(task))
    for chosen in places.values():
        index = torch.tensor(chosen, device=first.device)
        own = {name: p.index_select(0, index) for name, p in params.items()}
        losses[index] = evaluate(task[chosen[0]], own, split, chunk_size=chunk_size)
    return losses
