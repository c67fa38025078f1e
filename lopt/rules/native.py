"""Kernels for a CPU in C++, as libraries: made once with the machine's compiler, kept in the user's cache.

Making one takes some two seconds, at the first step of its rule on a machine. Where there is no compiler, PyTorch's
operators do the same. A source may include the headers that lie beside it, and beside this module.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

_HEADERS = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd")
_CAPABILITIES = {  # what PyTorch calls them -> flags; never the compiling machine's own, since caches are shared
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=256"),
}
_SECONDS = 120


def enabled() -> bool:
    """Whether kernels of any kind may be used: unless LOPT_KERNELS is 0."""
    return os.environ.get("LOPT_KERNELS", "1") != "0"


def compiler() -> str | None:
    """The C++ compiler of this machine: CXX if it is set, else the first that is found."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return found if found and shutil.which(found) else None


def load(source: Path, rule: str) -> ctypes.CDLL | None:
    """The compiled source; None where it cannot be made, with a warning if a compiler is there and fails.

    Args:
        rule: whose kernels they are, for the warning and for the name of the file.
    """
    chosen = compiler()
    if chosen is None:
        return None
    try:
        return ctypes.CDLL(str(_built(chosen, source, rule)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # a user may have no home, which is the second
        said = getattr(error, "stderr", None) or error
        warnings.warn(
            f"The {rule} rule runs without its kernels for the CPU: {chosen} could not make them ({said}). "
            "The result is the same and takes longer; LOPT_KERNELS=0 says that this is meant.",
            stacklevel=3,
        )
        return None


def _built(chosen: str, source: Path, rule: str) -> Path:
    """The file of the library, made if it is not in the cache. Processes that make it at once do not disturb."""
    command = [chosen, *_FLAGS, *_CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ())]
    headers = [path for folder in (_HEADERS, source.parent) for path in sorted(folder.glob("*.h"))]
    texts = [path.read_bytes() for path in (source, *headers)]
    key = hashlib.sha256(b"\0".join([*texts, *(word.encode() for word in command)])).hexdigest()[:16]
    folder = Path(os.environ.get("LOPT_CACHE") or "~/.cache/lopt").expanduser() / "kernels"
    made = folder / f"{rule.lower()}-{key}.so"
    if not made.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            new = Path(place) / made.name
            arguments = [*command, f"-I{_HEADERS}", str(source), "-o", str(new)]
            subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=_SECONDS)
            new.replace(made)
    return made
