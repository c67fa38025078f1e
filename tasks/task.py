"""The contract of an inner problem (`Task`) and of a distribution over inner problems (`TaskFamily`).

What is random about a batch (`draw`) is kept apart from looking it up (`gather`), so that a population draws for every
particle with that particle's own generator and then gathers for all of them at once, inside `torch.func.vmap`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.tracing import trace
from lopt.weight_space import WeightSpace

Split: TypeAlias = Literal["train", "validation", "test"]
Batch: TypeAlias = Any  # a tensor, or a tuple or dict of tensors


class Sizes(NamedTuple):
    """How many examples there are to train on, and in a training batch."""

    dataset: int
    batch: int


class Task(ABC):
    """One inner problem: a module (its structure only), a loss, and data that already lie on the device.

    Tasks of equal `population` share `loss`, `gather` and `weight_space`, and differ in `init`, `draw` and
    `evaluation_batch` alone: so they run as one vmapped population. What else differs from task to task (scales, noise
    levels) travels in what they draw.
    """

    name: str
    module: nn.Module
    weight_space: WeightSpace
    optimum: Mapping[str, Tensor] | None = None  # of the loss on the evaluation batch of "train", where it is known

    @property
    def population(self) -> Hashable:
        """Tasks with equal values run as one population: by default, those that hold the same module object."""
        return self.module

    @property
    def sizes(self) -> Sizes | None:
        """How many examples there are; None: every one is new."""
        return None

    @abstractmethod
    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial weights, a new draw at every call."""

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean loss () over a batch; pure."""

    @abstractmethod
    def draw(self, split: Split, generator: torch.Generator) -> Batch:
        """What is random about one batch: indices into the split, noise."""

    @abstractmethod
    def gather(self, split: Split, drawn: Batch) -> Batch:
        """The batch that `drawn` stands for; pure."""

    @abstractmethod
    def evaluation_batch(self, split: Split) -> Batch:
        """The fixed batch on which the loss of a split is measured: all of it where it fits."""

    def batch(self, split: Split, generator: torch.Generator) -> Batch:
        """A random batch of a split."""
        return self.gather(split, self.draw(split, generator))


class TaskFamily(ABC):
    """A distribution over tasks."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Task:
        """One task of the family."""

    def member(self, generator: torch.Generator) -> TaskFamily:
        """A family all of whose tasks run as one population; this one, unless it is made of several.

        So `member(generator)` draws an architecture, and `sample` of what it returns the tasks of a population.
        """
        return self


def init_module(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights as PyTorch initialises this module, drawn from `generator` instead of the global random state.

    Calls `reset_parameters` of every submodule that has it, children before parents, as constructors do. Every
    submodule that holds parameters of its own must have it, as the layers of `torch.nn` do.

    Raises:
        InvalidInput: a submodule with parameters cannot initialise itself.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        for name, part in reversed(list(module.named_modules())):
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif any(True for _ in part.parameters(recurse=False)):
                raise InvalidInput(
                    f"module: {name or 'the module'!r} ({type(part).__name__}) has parameters but no "
                    "reset_parameters(), so its initial weights cannot be drawn. Give it that method"
                )
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def weight_space_of(module: nn.Module, *example_inputs: Tensor) -> WeightSpace:
    """The symmetry of a task's module in the mode that it is in, traced on inputs as the task gives them.

    Not verified numerically: families build many networks, and the tests verify one of every kind.

    >>> weight_space_of(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)), torch.ones(2, 3))
    WeightSpace({'0.weight': 'g0:4, in=3', '0.bias': 'g0:4', '2.weight': 'out=2, g0:4'})
    """
    return trace(module, *example_inputs, training=module.training, verify=False)
