"""The kernels for a CPU, passes.cpp, as a library: made once with the machine's compiler, kept in the user's cache.

Making them takes some two seconds, at the first step on a machine. Where there is no compiler, PyTorch's operators do
the same.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("passes.cpp")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
_CAPABILITIES = {  # what PyTorch calls them -> flags; never the compiling machine's own, since caches are shared
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=256"),
}
_SECONDS = 120


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be made, with a warning if a compiler is there and fails."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not shutil.which(compiler):
        return None
    try:
        return _declared(ctypes.CDLL(str(_built(compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        warnings.warn(
            f"The Neuron rule runs without its kernels for the CPU: {compiler} could not make them ({said}). "
            "The result is the same and takes longer; LOPT_KERNELS=0 says that this is meant.",
            stacklevel=2,
        )
        return None


def _built(compiler: str) -> Path:
    """The file of the library, made if it is not in the cache. Processes that make it at once do not disturb."""
    command = [compiler, *_FLAGS, *_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ())]
    key = hashlib.sha256(SOURCE.read_bytes() + "\0".join(command).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("LOPT_CACHE") or "~/.cache/lopt").expanduser() / "kernels"
    made = folder / f"neuron-{key}.so"
    if not made.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            new = Path(place) / made.name
            arguments = [*command, str(SOURCE), "-o", str(new)]
            subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=_SECONDS)
            new.replace(made)
    return made


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    about = [pointer, integer, pointer, integer]  # parts and tensors
    found.lopt_advance.argtypes = [*about, pointer, pointer, integer, integer, pointer, integer]
    second = [pointer, integer, pointer, integer, ctypes.c_float, pointer, pointer, integer]
    found.lopt_combine.argtypes = [*about, *second]
    found.lopt_advance.restype = found.lopt_combine.restype = None
    return found
