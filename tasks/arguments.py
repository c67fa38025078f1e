"""What the arguments of a task family may be, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from lopt.errors import InvalidInput, unknown

T = TypeVar("T")


def pick(what: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry of a registry, or an `InvalidInput` with the near matches."""
    if not isinstance(name, str) or name not in registry:
        raise unknown(what, str(name), registry)
    return registry[name]


def is_whole(value: object, least: int = 0) -> bool:
    """Whether it is a whole number of at least `least`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether it is an int or a float; true and false are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(argument: str, value: int) -> None:
    """Raises `InvalidInput` unless `value` is a whole number of at least 1."""
    if not is_whole(value, least=1):
        raise InvalidInput(f"{argument}={value!r}: give a whole number of at least 1")


def check_widths(argument: str, widths: Sequence[int], least: int = 0) -> list[int]:
    """The widths as a list, or an `InvalidInput`: they must be whole numbers, at least `least` of them."""
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise InvalidInput(f"{argument}={widths!r}: give a list of widths, as [32] for one layer")
    for width in widths:
        check_positive(f"{argument}, width", width)
    if len(widths) < least:
        raise InvalidInput(f"{argument}={list(widths)}: give at least {least}")
    return list(widths)


def check_divides(what: str, part: int, whole: int) -> None:
    """Raises `InvalidInput` unless `part` divides `whole`."""
    if whole % part:
        divisors = [n for n in range(1, whole + 1) if whole % n == 0]
        raise InvalidInput(f"{what}: {part} does not divide {whole}. Give one of {divisors}")


def check_at_least(argument: str, value: float, least: float) -> None:
    """Raises `InvalidInput` unless `value` is a number of at least `least`."""
    if not is_number(value) or not least <= value < float("inf"):
        raise InvalidInput(f"{argument}={value!r}: give a number of at least {least}")


def check_weights(weights: Sequence[float] | None, count: int, of: str) -> list[float]:
    """The weights as numbers, equal ones for None, or an `InvalidInput`: `count` of at least 0, not all of them 0."""
    if weights is None:
        return [1.0] * count
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise InvalidInput(f"weights={weights!r}: give a list of numbers, one a {of}") from None
    if len(numbers) != count or not all(0 <= number < float("inf") for number in numbers):
        raise InvalidInput(f"weights={numbers}: give {count} numbers of at least 0, one a {of}")
    if not sum(numbers) > 0:
        raise InvalidInput(f"weights={numbers}: at least one must be above 0")
    return numbers


def check_range(argument: str, low: float, high: float) -> None:
    """Raises `InvalidInput` unless 0 < low <= high: the ends of a log-uniform distribution."""
    for value in (low, high):
        if not is_number(value) or not 0 < value < float("inf"):
            raise InvalidInput(f"{argument}: {value!r} is no positive number")
    if low > high:
        raise InvalidInput(f"{argument}: low={low} is above high={high}. Exchange them")


def floating_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype from itself or from its name, as a YAML file gives it.

    >>> floating_dtype("float32")
    torch.float32
    """
    known = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
    found = known.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in known.values():
        raise InvalidInput(f"dtype={dtype!r}: give torch.float32 or another of {', '.join(known)}, or its name")
    return found


def usable_device(device: str | torch.device) -> torch.device:
    """The device, once it has been seen to hold a tensor."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = str(error).partition("\n")[0]
        raise InvalidInput(f"device={device!r} cannot be used here ({cause}). 'cpu' always can") from error
