"""Running a module of somebody else and leaving no trace, as it is or in exact arithmetic.

How the parts fit: `check_module` refuses what cannot be run; `Snapshot` remembers the whole state of a module and puts
it back, as often as one likes; `isolated` is a `Snapshot` for the length of a `with`, along with the random state, and
can turn the module into float64; `exact` makes operators exact: no fused kernels, no detour through float32.

The objects stay the same: a parameter gets other data for the length of the run (`.data`), and its own back after it.
Nothing is deep-copied, since many modules cannot be: weight_norm's tensors with a history, handles, locks.
"""

from __future__ import annotations

import random
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lopt.errors import InvalidInput

# What stands for what in exact arithmetic.
EXACT = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
} | {dtype: torch.float64 for name, dtype in vars(torch).items() if name.startswith("float8_")}

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
_ATOMS = (str, bytes, int, float, complex, type(None), type, types.ModuleType, types.FunctionType, torch.dtype)


def exactly(tensor: Tensor) -> Tensor:
    """The tensor in float64 or complex128; integers and booleans as they are. Always a copy.

    >>> exactly(torch.ones(2)).dtype, exactly(torch.ones(2, dtype=torch.int8)).dtype
    (torch.float64, torch.int8)
    """
    return tensor.detach().to(EXACT.get(tensor.dtype, tensor.dtype), copy=True)


# --- what cannot be run ----------------------------------------------------------------------------------------------


def check_module(module: nn.Module, values: bool = True) -> None:
    """Refuses, by name, a module whose parameters have no shape or no values, or lie on several devices.

    Args:
        values: whether the values of parameters are needed. A trace under fake tensors can do without.

    Raises:
        InvalidInput: lazy, quantised or (with `values`) meta tensors; several devices; float64 unknown to the device.
    """
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"module: {type(module).__name__}; give an nn.Module")
    places: dict[torch.device, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise InvalidInput(
                f"module: parameter {name!r} is lazy, without a shape yet; run the module once on an example first"
            )
        if tensor.is_quantized:
            raise InvalidInput(f"module: parameter {name!r} is quantised; give the module before its quantisation")
        if values and tensor.device.type == "meta":
            raise InvalidInput(
                f"module: parameter {name!r} is on the meta device, without values; "
                "use module.to_empty(device='cpu') and initialise it first"
            )
        places.setdefault(tensor.device, name)
    for name, part in module.named_modules():
        if "quantized" in type(part).__module__.split("."):
            raise InvalidInput(
                f"module: submodule {name!r} is {type(part).__name__}, quantised; give the module before quantisation"
            )
    if len(places) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in places.items())
        raise InvalidInput(f"module: its tensors lie on several devices: {where}; move it to one: module.to('cpu')")
    if values and any(device.type == "mps" for device in places):
        raise InvalidInput("module: its device mps has no float64; move it to one that does: module.to('cpu')")


# --- putting everything back -----------------------------------------------------------------------------------------


class Snapshot:
    """The state of a module: what every submodule holds, and the data of every tensor that it reaches.

    It follows `__dict__` of the submodules (also of those hidden in lists), containers in them, and, one level deep,
    plain objects that they hold, such as a cache. `restore()` brings back every attribute, every container's content,
    and every tensor's data, gradient and requires_grad. The values of tensors are kept only as far as the run works on
    copies: see `use`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors: dict[int, Tensor] = {}
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self._seen: dict[int, Any] = {}  # holds what it has seen, so that no id is given to another object
        self._visit(module, depth=0)
        self._flags = [(t, t.grad if t.is_leaf else None, t.requires_grad, t.is_leaf) for t in self.tensors.values()]
        self._data: list[tuple[Tensor, Tensor]] = []

    def _visit(self, value: Any, depth: int) -> None:
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
        elif type(value) in _CONTAINERS or isinstance(value, tuple):
            if not isinstance(value, tuple):
                self._containers.append((value, value.copy()))
            for part in list(value.values() if isinstance(value, dict) else value):
                self._visit(part, depth)
        elif isinstance(value, nn.Module) or (depth == 1 and isinstance(getattr(value, "__dict__", None), dict)):
            attributes = value.__dict__
            self._attributes.append((attributes, attributes.copy()))
            for part in list(attributes.values()):
                self._visit(part, 1 if isinstance(value, nn.Module) else 2)

    def use(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Gives every tensor other data, `change(tensor, its data)`; its own is out of reach until `restore`."""
        self._data = self._data or [(tensor, tensor.data) for tensor in self.tensors.values()]
        for tensor, data in self._data:
            if tensor.is_leaf:
                tensor.grad = None
            tensor.data = change(tensor, data)

    def restore(self) -> None:
        """Brings everything back. May be called again and again."""
        for attributes, before in self._attributes:
            if attributes.keys() != before.keys() or any(attributes[k] is not v for k, v in before.items()):
                attributes.clear()
                attributes.update(before)
        for container, before in self._containers:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(before)
        for tensor, _, _, is_leaf in self._flags:
            if is_leaf:
                if tensor.grad_fn is not None:
                    tensor.detach_()  # an operator with a history has written into it
                tensor.grad = None  # may have the other data's dtype
        for tensor, data in self._data:
            tensor.data = data
        for tensor, grad, requires_grad, is_leaf in self._flags:
            if is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad
        for generator, before in self._generators:
            generator.set_state(before)


@contextmanager
def isolated(
    module: nn.Module, training: bool | None = None, double: bool = False, copy: bool = True
) -> Iterator[Snapshot]:
    """Whatever is done to the module in this block is undone at its end, and the random state is as before.

    Args:
        training: the mode during the block; `None` leaves it.
        double: every floating tensor of the module (parameters, buffers, plain attributes) becomes float64.
        copy: the block works on copies of the tensors. Without, what is written into them in place stays written:
            right where nothing is written, as under a FakeTensorMode, and needs no memory.

    >>> layer = nn.Linear(2, 1)
    >>> with isolated(layer, training=False, double=True):
    ...     layer.weight.dtype, layer.training
    (torch.float64, False)
    >>> layer.weight.dtype, layer.training
    (torch.float32, True)
    """
    snapshot = Snapshot(module)
    with _random_state(module):
        try:
            if double or copy:
                snapshot.use(lambda _, data: exactly(data) if double else data.clone())
            if training is not None:
                module.train(training)
            yield snapshot
        finally:
            snapshot.restore()


@contextmanager
def _random_state(module: nn.Module) -> Iterator[None]:
    """The generators of Python, numpy, torch and the module's device are afterwards what they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = {p.device for p in module.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None
    try:
        with torch.random.fork_rng(cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def random_state(module: nn.Module) -> list[bytes]:
    """The generators of torch that the module draws from, to tell whether it did."""
    cuda = {p.device for p in module.parameters() if p.device.type == "cuda"}
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda)]
    return [state.numpy().tobytes() for state in states]


def seed_everything(seed: int) -> None:
    """The same dropout masks and noise for every run; inside `isolated`, which puts the random state back."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


# --- exact arithmetic ------------------------------------------------------------------------------------------------

_CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}
_IMPORTS = {torch.tensor, torch.as_tensor, torch.asarray}  # tensors from outside, of any dtype


class _UpCast(TorchFunctionMode):
    """Turns every cast to a lower precision into one to float64.

    Many modules compute a norm or a softmax in float32 whatever their input is. In float64 such an up-cast becomes a
    down-cast, and its rounding, 1e-7, would hide every error below it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].to(torch.float64)
        if getattr(func, "__name__", "") in ("grouped_mm", "_grouped_mm") and args[0].dim() == 2 and args[1].dim() == 3:
            return _grouped_mm(*args, **(kwargs or {}))
        if func is torch.ops.higher_order.cond:  # would trace both branches; the one that is chosen is meant
            chosen, yes, no, operands = args
            return (yes if bool(chosen) else no)(*operands)
        if func is not Tensor.view:  # whose dtype says how to read the bits, which is no cast
            up = _up_type if func is Tensor.type else _up
            args = tuple(up(value) for value in args)
            kwargs = {key: up(value) for key, value in (kwargs or {}).items()}
        result = func(*args, **(kwargs or {}))
        if func in _IMPORTS and result.dtype in EXACT:
            return result.to(EXACT[result.dtype])
        return result


def _grouped_mm(rows: Tensor, matrices: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """Runs of rows (t, k), each times its matrix of (e, k, n); PyTorch's own has no float64."""
    runs = rows.tensor_split(offs.tolist()[:-1])
    return torch.cat([run.to(matrices.dtype) @ matrix for run, matrix in zip(runs, matrices, strict=True)])


def _up(value: Any) -> Any:
    return EXACT.get(value, value) if isinstance(value, torch.dtype) else value


def _up_type(value: Any) -> Any:
    """`Tensor.type` also takes a class of tensors, or its name."""
    name = f"{value.__module__}.{value.__name__}" if isinstance(value, type) else str(value)
    return torch.float64 if name.endswith((".FloatTensor", ".HalfTensor", ".BFloat16Tensor")) else _up(value)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Nothing is compiled: neither what the module has wrapped in `torch.compile`, nor what it gives to `torch.cond`,
    `scan` and their like. These compile their functions first, which shows nobody what runs, and is refused under a
    mode that watches. There is no public switch: if PyTorch renames the functions that compile, nothing changes."""
    plain = {
        "_hop_compile_and_call": lambda fn, args, kwargs=None: fn(*args, **(kwargs or {})),
        "_maybe_compile_and_run_fn": lambda fn, *args: fn(*args),
    }
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, part in list(sys.modules.items()):
            for function in plain if name.startswith("torch._higher_order_ops.") else ():
                if hasattr(part, function):
                    stack.enter_context(mock.patch.object(part, function, plain[function]))
        yield


@contextmanager
def exact() -> Iterator[None]:
    """Operators as their definition says: plain attention, no autocast, nothing rounded below float64.

    Settings of the process are put back at the end. Combine with `isolated(module, double=True)`, and with inputs
    through `exactly`.
    """
    fast, dtype = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.callback(torch.set_default_dtype, dtype)
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_default_dtype(torch.float64)
        stack.enter_context(uncompiled())
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_UpCast())
        yield
