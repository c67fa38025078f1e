"""Random programs for the fuzzer of `lopt.trace`: a few lines of PyTorch over random parameters.

How the parts fit: a `Program` is source text with the shapes of its parameters, inputs and outputs; as a module it runs
that text. A `Builder` writes it: it asks one writer after the other for a line (tracing_lines.py, tracing_moves.py),
executes it at once, and keeps those that work: that stay finite, small and of moderate size. At the end every value
that nobody has used is read out, so that all of the program matters.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST_VALUE, LARGEST_SIZE, LARGEST_RANK = 30.0, 3000, 5
ROUNDING = 1e-9
SIZES = (2, 2, 3, 3, 4, 4, 6)  # few and small, so that sizes coincide
NAME = re.compile(r"\b[vpx]\d+\b")  # values, parameters, inputs
ZEROS = "torch.zeros({}, dtype=torch.float64)"
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Source text.

    Attributes:
        parameters, inputs: shapes by name.
        lines: statements, in order; each assigns a new name or writes into an old one in place.
        outputs: the names that are returned.
    """

    parameters: Mapping[str, Shape]
    inputs: Mapping[str, Shape]
    lines: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        head = [f"{name}: parameter {shape}" for name, shape in self.parameters.items()]
        head += [f"{name}: input {shape}" for name, shape in self.inputs.items()]
        return "\n".join([*head, *self.lines, f"return {', '.join(self.outputs)}"])

    def pruned(self) -> Program:
        """Without the parameters and inputs that no line names."""
        used = {name for line in self.lines for name in NAME.findall(line)} | set(self.outputs)
        return replace(
            self,
            parameters={name: shape for name, shape in self.parameters.items() if name in used},
            inputs={name: shape for name, shape in self.inputs.items() if name in used},
        )

    def module(self, seed: int = 0) -> Running:
        """A module that runs the text."""
        return Running(self, seed)


class Running(nn.Module):
    """The program as a module with parameters of its own, in float64."""

    def __init__(self, program: Program, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in program.parameters.items():
            self.register_parameter(name, nn.Parameter(drawn_parameter(shape, generator)))
        self.outputs = program.outputs
        self.code = compile("\n".join(program.lines), "<program>", "exec")
        self.examples: dict[str, Any] = {name: drawn_input(shape, generator) for name, shape in program.inputs.items()}

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        return self.run(dict(self.named_parameters()), inputs)

    def run(self, parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs with other parameters."""
        values: dict[str, Any] = {"torch": torch, "F": F, **parameters, **inputs}
        exec(self.code, values)
        return tuple(values[name] for name in self.outputs)


def drawn_parameter(shape: Shape, generator: torch.Generator) -> Tensor:
    """Entries of RMS 0.7."""
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7


def drawn_input(shape: Shape, generator: torch.Generator) -> Tensor:
    """Entries of RMS 1."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass
class Builder:
    """A program that is being written, with the present values of its names."""

    rng: random.Random
    generator: torch.Generator
    lines: list[str] = field(default_factory=list)
    parameters: dict[str, Shape] = field(default_factory=dict)
    inputs: dict[str, Shape] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    # What the writers of lines ask for.
    def new(self) -> str:
        """A new name for a value."""
        self.count += 1
        return f"v{self.count}"

    def parameter(self, *shape: int) -> str:
        """A parameter of that shape: mostly a new one, sometimes one that is there already."""
        alike = [name for name, known in self.parameters.items() if known == shape]
        if alike and self.rng.random() < 0.15:
            return self.rng.choice(alike)
        name = f"p{len(self.parameters)}"
        self.parameters[name] = shape
        self.tensors[name] = drawn_parameter(shape, self.generator).requires_grad_()
        return name

    def add_input(self, *shape: int) -> str:
        """A new input."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = shape
        self.tensors[name] = drawn_input(shape, self.generator)
        return name

    def size(self) -> int:
        """A size of an axis."""
        return self.rng.choice(SIZES)

    def coin(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def shape(self, name: str) -> Shape:
        return tuple(self.tensors[name].shape)

    def names(self, least: int = 0, most: int = LARGEST_RANK) -> list[str]:
        """Values with a rank in that range; the latest ones last."""
        return [name for name, t in self.tensors.items() if least <= t.dim() <= most and t.is_floating_point()]

    def pick(self, least: int = 0, most: int = LARGEST_RANK) -> str:
        """A value with a rank in that range: mostly a late one or one that nobody has used."""
        names = self.names(least, most)
        if not names:
            raise NoLine
        unused = [name for name in self.unused() if name in names]
        if unused and self.coin(0.6):
            return self.rng.choice(unused)
        return self.rng.choice(names[-6:] if self.coin(0.6) else names)

    def axis(self, name: str) -> int:
        """An axis of a value."""
        if not self.shape(name):
            raise NoLine
        return self.rng.randrange(len(self.shape(name)))

    def unused(self) -> list[str]:
        """Values (not parameters, not inputs) that no line has used."""
        used = {name for line in self.lines for name in read_by(line)}
        return [name for name in self.tensors if name.startswith("v") and name not in used]

    # Executing what they write.
    def execute(self, text: str) -> bool:
        """Runs lines and keeps them, if they work; else everything is as before."""
        made = dict(self.tensors)
        scope: dict[str, Any] = {"torch": torch, "F": F, **made}
        try:
            exec(text, scope)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
            return self._undo(text)
        found = {name: value for name, value in scope.items() if isinstance(value, Tensor) and NAME.fullmatch(name)}
        if not all(map(_is_tame, found.values())):
            return self._undo(text)
        self.tensors = found
        self.lines += text.splitlines()
        return True

    def _undo(self, text: str) -> bool:
        """Something may have been written in place before it went wrong."""
        if any(mark in text for mark in ("_(", "] =", "+=", "out=")):
            generator = torch.Generator().manual_seed(0)
            self.tensors = {name: t for name, t in self.tensors.items() if name[0] in "px"}
            for name in self.inputs:
                self.tensors[name] = drawn_input(self.inputs[name], generator)
            scope: dict[str, Any] = {"torch": torch, "F": F, **self.tensors}
            exec("\n".join(self.lines), scope)
            self.tensors = {name: v for name, v in scope.items() if isinstance(v, Tensor) and NAME.fullmatch(name)}
        return False


def read_by(line: str) -> list[str]:
    """The names that a line reads, other than the one that it makes or writes into."""
    _, assigned, right = line.partition("= ")
    return NAME.findall(right) if assigned else NAME.findall(line)[1:]


class NoLine(Exception):
    """The program has no value yet that such a line could use."""


Writer: TypeAlias = Callable[[Builder], str]
W = TypeVar("W", bound=Writer)
WRITERS: dict[Writer, float] = {}


def weight(value: float) -> Callable[[W], W]:
    """How often a writer of lines is asked, relative to the others."""

    def add(writer: W) -> W:
        WRITERS[writer] = value
        return writer

    return add


def one_line(builder: Builder) -> str:
    """The text of one writer.

    Raises:
        NoLine: it found nothing to write about.
    """
    (writer,) = builder.rng.choices(list(WRITERS), list(WRITERS.values()))
    return writer(builder)


def _is_tame(tensor: Tensor) -> bool:
    if tensor.numel() > LARGEST_SIZE or tensor.dim() > LARGEST_RANK:
        return False
    if not tensor.is_floating_point():
        return not tensor.is_complex()
    if not tensor.numel():
        return False
    size = float(tensor.detach().abs().max())
    return size == 0 or ROUNDING < size < LARGEST_VALUE  # what cancels but for rounding tells nothing


def read_out(builder: Builder) -> tuple[str, ...]:
    """Lines that turn every value that nobody has used into an output."""
    rng, outputs = builder.rng, []
    for name in builder.unused():
        tensor = builder.tensors[name]
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        out, shape = builder.new(), tuple(tensor.shape)
        if tensor.dim() and builder.coin(0.6):
            kept = rng.randrange(tensor.dim())
            width = tensor.shape[kept:].numel()
            text = f"{out} = {name}.reshape({(*shape[:kept], width)}) @ {builder.parameter(width, 2)}"
        elif builder.coin(0.5):
            axes = sorted(rng.sample(range(tensor.dim()), rng.randint(0, tensor.dim())))
            text = f"{out} = {name}.sum({axes}).square()" if axes else f"{out} = {name}.square().mean()"
        else:
            text = f"{out} = torch.tanh({name}).mean()"
        if builder.execute(text):
            outputs.append(out)
    return tuple(outputs)


def finished(builder: Builder, outputs: Sequence[str]) -> Program:
    """What was written, as a program."""
    return Program(dict(builder.parameters), dict(builder.inputs), tuple(builder.lines), tuple(outputs)).pruned()
