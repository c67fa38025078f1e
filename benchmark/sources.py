"""Where a race's task comes from: an object, a configured family, or a user's own module.

A source travels to worker processes in place of the task, which would carry its data with it; each process loads the
task once. Its `key` says what was asked for and its `content` what that gave, so that results can be cached: code and
data behind the same words may change from run to run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor
from torch.utils import _pytree as pytree

import tasks
from lopt.errors import InvalidInput, unknown
from tasks.task import Batch, Split, Task, TaskFamily

DIGITS = 4  # of losses and gradients in a fingerprint
KEPT = 2  # tasks that a process holds at a time
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_loaded: OrderedDict[str, Task] = OrderedDict()


class Source(Protocol):
    """Something that a task can be loaded from."""

    @property
    def label(self) -> str:
        """What tables call the task."""
        ...

    @property
    def key(self) -> Mapping[str, Any] | None:
        """What was asked for, as JSON values; None: not known, so that nothing of it is cached."""
        ...

    @property
    def content(self) -> str | None:
        """The `fingerprint` of the task; None where there is no key. Loads the task, and looks at it once."""
        ...

    def load(self) -> Task:
        """The task, the same object while this process still holds it."""
        ...


@dataclass(frozen=True)
class Given:
    """A task that is at hand."""

    task: Task

    @property
    def label(self) -> str:
        return self.task.name

    @property
    def key(self) -> None:
        return None

    @property
    def content(self) -> None:
        return None

    def load(self) -> Task:
        return self.task


class Looked(ABC):
    """A source whose task is looked at once; what was seen travels with it."""

    @abstractmethod
    def load(self) -> Task: ...

    @property
    def content(self) -> str:
        return self._content

    @cached_property
    def _content(self) -> str:
        return fingerprint(self.load())


@dataclass(frozen=True, eq=False)
class Configured(Looked):
    """A task of a family that a configuration describes."""

    label: str
    node: Mapping[str, Any]  # `_target_` and its arguments
    seed: int

    @property
    def key(self) -> Mapping[str, Any]:
        return {"family": dict(self.node), "seed": self.seed}

    def load(self) -> Task:
        return _once(
            json.dumps(self.key, sort_keys=True), lambda: build_family(self.node).sample(_generator(self.seed))
        )


@dataclass(frozen=True)
class Own(Looked):
    """A Task, a TaskFamily, or a function that makes one: what an import path names, called without arguments."""

    path: str  # my_package.MyTask
    seed: int

    @property
    def label(self) -> str:
        return self.path

    @property
    def key(self) -> Mapping[str, Any]:
        return {"own": self.path, "seed": self.seed, "content": self.content}

    def load(self) -> Task:
        return _once(f"{self.path} {self.seed}", self._make)

    def _make(self) -> Task:
        made = _find(self.path)()
        task = made.sample(_generator(self.seed)) if isinstance(made, TaskFamily) else made
        if not isinstance(task, Task):
            raise InvalidInput(
                f"task: {self.path} gives a {type(task).__name__}, which is neither a tasks.Task nor a "
                "tasks.TaskFamily. Name a class or function that makes one without arguments."
            )
        return task


def build_family(node: Any) -> TaskFamily:
    """The task family that a configuration's node names.

    Raises:
        InvalidInput: no such family, or it refuses its arguments.
    """
    known = {
        name: kind for name, kind in vars(tasks).items() if isinstance(kind, type) and issubclass(kind, TaskFamily)
    }
    known.pop("TaskFamily", None)
    family = build("task family", node, "tasks", known)
    if not isinstance(family, TaskFamily):
        raise InvalidInput(f"task family: {node} gives a {type(family).__name__}, which is not a TaskFamily.")
    return family


def build(what: str, node: Any, module: str, known: Mapping[str, type]) -> object:
    """Builds what a node's `_target_` names. Names of our own are looked up first, for the near matches."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        raise InvalidInput(f"{what}: {node!r} names no class. Write {{_target_: {module}.{next(iter(known))}}}.")
    path, _, name = target.rpartition(".")
    if path == module and name not in known:
        raise unknown(what, name, known)
    try:
        return instantiate(dict(node))
    except InstantiationException as error:
        if isinstance(error.__cause__, InvalidInput):
            raise error.__cause__ from error
        raise InvalidInput(f"{what}: {target} cannot be made: {error.__cause__ or error}") from error


def fingerprint(task: Task) -> str:
    """A hash of a task's structure, first weights, first batches and evaluation batches, and of the losses on them.

    The weights and the data say nothing of the function that they go through: so its losses and the norms of its
    gradients are looked at as well, to a few digits, since the last ones depend on the processor and its threads.

    Raises:
        InvalidInput: the task cannot compute a loss and its gradient.
    """
    generator, digest = _generator(0), hashlib.sha256()
    params = task.init(generator)
    drawn = [task.batch(split, generator) for split in SPLITS]
    fixed = [task.evaluation_batch(split) for split in SPLITS]
    for leaf in pytree.tree_leaves([params, drawn, fixed]):
        digest.update(repr((tuple(leaf.shape), leaf.dtype)).encode())
        digest.update(leaf.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    try:
        seen = _slopes(task, params, drawn)
        with torch.no_grad():  # a whole split is too much to differentiate
            seen += [task.loss(params, batch).item() for batch in fixed]
    except Exception as error:  # whatever a task of somebody else does
        raise InvalidInput(
            f"task: {task.name} cannot compute its loss and the gradient on its own batches "
            f"({type(error).__name__}: {error}). A loss is a tensor () that depends on the weights."
        ) from error
    digest.update(repr(([f"{value:.{DIGITS}g}" for value in seen], task.module, task.weight_space)).encode())
    return digest.hexdigest()


def _slopes(task: Task, params: Mapping[str, Tensor], batches: Sequence[Batch]) -> list[float]:
    """The loss on every batch, and the norm of its gradient."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    seen = []
    for batch in batches:
        with torch.enable_grad():
            loss = task.loss(weights, batch)
        slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        seen += [loss.item(), torch.stack([slope.norm() for slope in slopes]).norm().item()]
    return seen


def find(what: str, path: str) -> Any:
    """What an import path names.

    Raises:
        InvalidInput: no such module, or no such name in it; with the near matches.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise InvalidInput(f"{what}: {path!r} is no import path. Write my_package.{path}.")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{what}: {path!r} cannot be imported ({error}). Is its folder on PYTHONPATH?") from error
    if not hasattr(found, name):
        raise unknown(f"{what} in {module}", name, [n for n in vars(found) if not n.startswith("_")])
    return getattr(found, name)


def _find(path: str) -> Callable[[], Any]:
    made = find("task", path)
    if not callable(made):
        raise InvalidInput(f"task: {path} is a {type(made).__name__}; name a class, or a function that makes a task.")
    return made


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _once(key: str, make: Callable[[], Task]) -> Task:
    """The task under `key`, made if this process does not hold it; the oldest makes room."""
    if key not in _loaded:
        _loaded[key] = make()
        while len(_loaded) > KEPT:
            _loaded.popitem(last=False)
    _loaded.move_to_end(key)
    return _loaded[key]
