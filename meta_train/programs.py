"""The population's step as one compiled program: traced to a flat graph of tensor operators, then given to Inductor.

`torch.func` and the rule's Python are gone after the trace, so what is compiled is a plain graph with static shapes,
one for each kind of population. On a GPU it is captured as a CUDA graph. Where no compiler works the step stays as it
was written, and a warning says so once: slower, with the same values.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

# Of Inductor. Shapes and strides are checked here, not at each operator; and what calls the operators is C++, too: a
# step has some fifty of them, each as short as a call from Python.
OPTIONS = {"size_asserts": False, "cpp_wrapper": True}
KEPT = 64  # programs; the one that was not used for longest makes place for a new one

_programs: OrderedDict[Hashable, Callable] = OrderedDict()
_broken: list[str] = []


class CompilerWarning(UserWarning):
    """The step runs uncompiled."""


def keep_programs() -> None:
    """Keeps what is compiled in $LOPT_CACHE, where the next run finds it, unless TORCHINDUCTOR_CACHE_DIR is set.

    Inductor's own place is a folder for temporary files.
    """
    cache = Path(os.environ.get("LOPT_CACHE") or "~/.cache/lopt").expanduser()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))


def program(step: Callable, kind: Hashable, example: tuple[Any, ...]) -> Callable:
    """`step` compiled for arguments of the shapes of `example`; the same program for equal kinds and shapes.

    Args:
        step: from nests of tensors to nests of tensors, without derivatives.
        kind: what distinguishes this step from others besides shapes. It is kept as long as the program.
    """
    leaves, spec = pytree.tree_flatten(example)
    described = tuple((tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else x for x in leaves)
    key = (kind, described, str(spec))
    if key in _programs:
        _programs.move_to_end(key)
        return _programs[key]
    if _broken:
        return step
    try:
        made = _compile(step, leaves, spec)
    except Exception as error:  # noqa: BLE001  the compilers raise what they like; the step itself works
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _broken.append(reason)
        warnings.warn(
            f"the inner step is not compiled, and runs some two times slower: {reason}. Install a C++ compiler, or "
            "set estimator.compiled=false",
            CompilerWarning,
            stacklevel=3,
        )
        return step
    _programs[key] = made
    if len(_programs) > KEPT:
        _programs.popitem(last=False)
    return made


def _compile(step: Callable, leaves: list[Any], spec: pytree.TreeSpec) -> Callable:
    outputs: list[pytree.TreeSpec] = []
    tensors = [place for place, x in enumerate(leaves) if isinstance(x, Tensor)]

    def flat(*given: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for place, x in zip(tensors, given, strict=True):
            filled[place] = x
        out, out_spec = pytree.tree_flatten(step(*pytree.tree_unflatten(filled, spec)))
        outputs.append(out_spec)
        return [x.contiguous() for x in out]  # as the next step wants them

    given = [leaves[place].contiguous() for place in tensors]
    on_gpu = any(x.is_cuda for x in given)
    with torch.no_grad():
        flat(*given)  # what a rule works out once for a weight space is then a constant of the graph
        graph = trace(flat, given)
        if on_gpu:
            fast: Any = torch.compile(graph, dynamic=False, mode="reduce-overhead")
            fast(*given)  # compiles now, so that a missing compiler shows here
        else:
            # Inductor keeps what it made on disk only if the trace could have had symbolic shapes.
            with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
                fast = torch._inductor.compile(graph, given, options=OPTIONS)

    def run(*arguments: Any) -> Any:
        now = [leaf.contiguous() for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        with torch.no_grad():
            out = fast(*now)
            if on_gpu:  # the outputs of a CUDA graph live until its next run, which is the next step
                out = [x.clone() for x in out]
        return pytree.tree_unflatten(out, outputs[0])

    return run


def trace(flat: Callable, given: Sequence[Tensor]) -> GraphModule:
    """The operators that `flat` runs on these tensors."""
    return make_fx(flat, decomposition_table={torch.ops.aten.bmm.default: _product})(*given)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left (P, m, k) @ right (P, k, n). A matrix that all particles share makes one product of P small ones."""
    count, m, k = left.shape
    n = right.shape[2]
    if count > 1 and left.stride(0) == 0:
        columns = right.transpose(0, 1).reshape(k, count * n)
        return (left[0] @ columns).view(m, count, n).transpose(0, 1)
    if count > 1 and right.stride(0) == 0:
        return (left.reshape(count * m, k) @ right[0]).view(count, m, n)
    return NotImplemented
