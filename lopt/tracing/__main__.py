"""python -m lopt.tracing my_module:factory -- the symmetry of a network, and why it is not larger.

`factory()` returns (module, inputs) or (module, inputs, kwargs), where inputs are a tuple of arguments, or one tensor.
"""

from __future__ import annotations

import argparse
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.tracing.trace import Analysis, analyse

_SHOWN = 6  # names told for one reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what a trace found. 0: all is well; 1: a group failed its verification; 2: the call was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m lopt.tracing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("factory", metavar="module:function", help="makes the network and its example")
    parser.add_argument("--training", action="store_true", help="run it in training mode; by default in eval mode")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="leave out the numeric proof")
    parser.add_argument("--draw", type=Path, metavar="FILE.svg", help="write a picture of the parameters and groups")
    options = parser.parse_args(arguments)
    try:
        module, inputs, kwargs = example(options.factory)
        found = analyse(module, *inputs, training=options.training, verify=options.verify, **kwargs)
        print(report(found))
        if options.draw is not None:
            found.space.draw(options.draw)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if found.verification is not None and not found.verification else 0


def example(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Calls the factory "module:function".

    Raises:
        InvalidInput: there is no such module or function, or it returns something else.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise InvalidInput(f"factory: {name!r}; write it as module:function, such as my_project.models:resnet")
    try:
        factory = pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise InvalidInput(
            f"factory: {name!r}; no module {error.name!r} is found. Run this where `import {module_name}` works"
        ) from error
    except (AttributeError, ValueError) as error:
        raise InvalidInput(f"factory: {name!r}; {error}") from error
    if not callable(factory):
        raise InvalidInput(f"factory: {name!r} is {type(factory).__name__}; give a function without arguments")
    return _unpacked(name, factory())


def _unpacked(name: str, made: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    rule = "return (module, inputs) or (module, inputs, kwargs), with inputs a tuple or one tensor, and kwargs a dict"
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        raise InvalidInput(f"factory: {name!r} returned {_kind(made)}; {rule}")
    module, inputs = made[:2]
    kwargs = made[2] if len(made) == 3 else {}
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    for what, value, kind in (
        ("module", module, nn.Module),
        ("inputs", inputs, tuple | list),
        ("kwargs", kwargs, dict),
    ):
        if not isinstance(value, kind):
            raise InvalidInput(f"factory: {name!r} returned {_kind(value)} for {what}; {rule}")
    return module, tuple(inputs), kwargs


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list) else kind


# --- the report ------------------------------------------------------------------------------------------------------


def report(found: Analysis) -> str:
    """The table, what is fixed and why, what was not understood or not used, and the proof."""
    parts = [str(found.space)]
    if found.reasons:
        parts.append("\n".join(["Fixed, and why (axes of parameters):", *_reasons(found.reasons)]))
    if found.unknown:
        parts.append("\n".join(["Not understood:", *(f"  {reason}" for reason in folded(found.unknown))]))
    if found.unused:
        parts.append("\n".join(["Not used by the example, or not wholly:", *(f"  {n}" for n in folded(found.unused))]))
    if found.routed:
        parts.append("Values decide what runs: this is the symmetry of the paths that were seen.")
    parts.append("Not verified." if found.verification is None else str(found.verification))
    return "\n\n".join(parts)


def _reasons(reasons: Mapping[tuple[str, int], Sequence[str]]) -> Iterator[str]:
    """A line for each reason, with the parameters' axes that it fixed."""
    places: dict[str, tuple[set[str], list[str]]] = {}
    for (name, axis), why in reasons.items():
        for reason in why:
            alike, names = places.setdefault(_starred(reason), (set(), []))
            alike.add(reason)
            names.append(f"{name}[{axis}]")
    for star, (alike, names) in places.items():
        told = folded(dict.fromkeys(names))
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        yield f"  {star if len(alike) > 1 else min(alike)}: {', '.join(told[:_SHOWN])}{more}"


def folded(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names that differ only in the numbers of layers are told once, with their count.

    >>> folded(["layers.0.weight", "layers.1.weight", "head.weight"])
    ['layers.*.weight (2)', 'head.weight']
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_starred(name), []).append(name)
    return [several[0] if len(several) == 1 else f"{star} ({len(several)})" for star, several in alike.items()]


def _starred(name: str) -> str:
    return re.sub(r"(?<![\w\[])\d+(?=[.\s,]|$)", "*", name)


if __name__ == "__main__":
    sys.exit(main())
