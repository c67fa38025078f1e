"""The kernels for a CPU, passes.cpp, as a library."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from lopt.rules.native import load

SOURCE = Path(__file__).with_name("passes.cpp")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be made."""
    found = load(SOURCE, "Neuron")
    return None if found is None else _declared(found)


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    about = [pointer, integer, pointer, integer]  # parts and tensors
    found.lopt_advance.argtypes = [*about, pointer, pointer, integer, integer, pointer, integer]
    second = [pointer, integer, pointer, integer, ctypes.c_float, pointer, pointer, integer]
    found.lopt_combine.argtypes = [*about, *second]
    found.lopt_deflate.argtypes = [pointer, integer, pointer, integer]
    found.lopt_think.argtypes = [*[pointer] * 9, integer]
    found.lopt_think.restype = integer
    found.lopt_deflate.restype = found.lopt_advance.restype = found.lopt_combine.restype = None
    return found
