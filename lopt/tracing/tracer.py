"""One pass over a module's forward: every operator that runs says what it does to the labels of its tensors.

A `TorchDispatchMode` sees the operators below autograd, with the parameters as the same objects. After each operator
its rule is found, in this order: a registered rule; `pointwise` by PyTorch's own tag; PyTorch's decomposition into
other operators; and if there is none, everything that the operator touches is fixed, and reported.

Labels belong to tensor objects. A tensor that no operator made, but that shares its memory with one that is known
(`nn.Parameter(h)`, `x.data = h`), is found by its memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lopt.tracing import algebra, labels
from lopt.tracing.call import Call, Reason, Record, WrongRule
from lopt.tracing.labels import Labels, Origin
from lopt.tracing.registry import RULES, Rule
from lopt.verification.tensor_tree import tensors_in


class Place(NamedTuple):
    """Where in its memory a tensor lies."""

    shape: tuple[int, ...]
    stride: tuple[Any, ...]
    offset: Any
    dtype: torch.dtype


class _Known(NamedTuple):
    tensor: Tensor
    labels: Labels
    memory: int
    place: Place


class Tracer(TorchDispatchMode):
    """Labels the tensors of one run. `wanted` are the origins that become blocks."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first operator would import the compiler, which takes a second

    def __init__(self, record: Record, wanted: set[Origin], location: Callable[[], str]) -> None:
        super().__init__()
        self.record, self.wanted, self._location = record, wanted, location
        self._labels: dict[int, _Known] = {}
        self._by_memory: dict[int, dict[Place, tuple[Any, Labels]]] = {}
        self._counts: Counter[str] = Counter()
        self.operator: tuple[Any, ...] = ()  # the name of the one that runs: the same in every pass

    @property
    def module(self) -> str:
        """The submodule that runs now."""
        return self._location()

    def labels(self, tensor: Tensor) -> Labels:
        """What is known of a tensor; one that was made out of sight is constant."""
        known = self._labels.get(id(tensor))
        if known is None or known.memory != _memory(tensor):
            self.set(tensor, self._found_by_memory(tensor, known))
        return self._labels[id(tensor)].labels

    def place(self, tensor: Tensor) -> Place:
        """Where in its memory the tensor lay when it got its labels."""
        return self._labels[id(tensor)].place

    def set(self, tensor: Tensor, made: Labels) -> None:
        """The tensor and its storage are kept, so that neither its id nor its memory is given to another."""
        memory, place = _memory(tensor), _place(tensor)
        self._labels[id(tensor)] = _Known(tensor, made, memory, place)
        self._by_memory.setdefault(memory, {})[place] = (_storage(tensor) if memory > 0 else None, made)

    def _found_by_memory(self, tensor: Tensor, before: _Known | None) -> Labels:
        """The labels of what lies there; else nothing moves what lies there, nor what the tensor was before."""
        known = self._by_memory.get(_memory(tensor), {})
        if _place(tensor) in known:
            return known[_place(tensor)][1]
        reason = Reason("a constant", self.module)
        for made in (*(made for _, made in known.values()), *([before.labels] if before else [])):
            for term in labels.all_terms(made):
                algebra.touch(term)
                algebra.fix(term, reason)
        return labels.constant(tensor.shape, reason)

    def fix(self, tensor: Tensor, reason: Reason) -> bool:
        """Nothing permutes the tensor; whether something did so far."""
        moved = False
        for term in labels.all_terms(self.labels(tensor)):
            moved = moved or not algebra.is_fixed(term)
            algebra.touch(term)
            algebra.fix(term, reason)
        return moved

    def fix_everything(self, reason: Reason) -> None:
        """Fixes every tensor that was seen."""
        for known in list(self._labels.values()):
            self.fix(known.tensor, reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if any(argument.is_out for argument in func._schema.arguments):
            return self._into_outputs(func, args, kwargs)
        rule = rule_of(func)
        if rule is None:
            with self:
                out = decomposed(func, args, kwargs)
            if out is not NotImplemented:
                return out
        call = Call(self, func, args, kwargs)
        before = {id(tensor): self.labels(tensor) for tensor in call.tensors}
        self.record.used.update(before)
        name = str(func)
        self.operator = (name, self._counts[name])
        self._counts[name] += 1
        call.out = func(*args, **kwargs)
        self._apply(rule, call)
        if func._schema.is_mutable:
            self._keep_written(call, before)
        return call.out

    def _apply(self, rule: Rule | None, call: Call) -> None:
        try:
            (rule or not_understood)(call)
        except (WrongRule, ValueError, IndexError, KeyError, TypeError, StopIteration):
            if rule is None:
                raise
            not_understood(call)

    def _keep_written(self, call: Call, before: dict[int, Labels]) -> None:
        """What an operator has written into is permuted as it was: other tensors may share the memory."""
        for argument in call.func._schema.arguments:
            tensor = call.arguments.get(argument.name)
            if not (argument.is_write and isinstance(tensor, Tensor)):
                continue
            old, new = before[id(tensor)], self.labels(tensor)
            if old is new or argument.name not in call.arguments or torch.Tag.inplace_view in call.func.tags:
                continue
            if old.shape == new.shape:
                for a, b in zip(*(labels.terms(made, call.reason) for made in (old, new)), strict=True):
                    algebra.unify(a, b, call.reason)
            else:
                for term in (*labels.all_terms(old), *labels.all_terms(new)):
                    algebra.fix(term, call.reason)

    def _into_outputs(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`out=`: the same without it, copied."""
        names = [argument.name for argument in func._schema.arguments if argument.is_out]
        outs = [kwargs.pop(name) for name in names]
        with self:
            made = func.overloadpacket(*args, **kwargs)
            for out, new in zip(outs, made if isinstance(made, tuple | list) else (made,), strict=True):
                if out.shape != new.shape:
                    self.fix(out, Reason(func._schema.name.removeprefix("aten::"), self.module))
                    out.resize_(new.shape)
                    self.set(out, labels.fresh(new.shape))
                out.copy_(new)
        return outs[0] if len(outs) == 1 else tuple(outs)

    def _higher_order(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Operators that take functions: `cond` runs the branch that is chosen. What others do inside cannot be seen,
        and their functions may hold any tensor."""
        if func is torch.ops.higher_order.cond:
            chosen, yes, no, operands = args
            self.record.routed = True
            with self:
                return (yes if bool(chosen) else no)(*operands)
        reason = Reason(str(func), self.module, unknown=True)
        self.record.unknown[reason] = None
        out = func(*args, **kwargs)
        self.fix_everything(reason)
        return out


def _memory(tensor: Tensor) -> int:
    """What names the memory of a tensor, however it was come by; the object itself, for a tensor without memory."""
    if tensor.layout is not torch.strided or tensor._is_zerotensor():
        return -id(tensor)
    storage = _storage(tensor)
    fake = isinstance(tensor, FakeTensor) or tensor.device.type == "meta"
    return (not fake and storage.data_ptr()) or -storage._cdata


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():  # or `Escapes` would take this for an escape
        return tensor.untyped_storage()


def _place(tensor: Tensor) -> Place:
    strided = tensor.layout is torch.strided and not tensor._is_zerotensor()
    where = (tensor.stride(), tensor.storage_offset()) if strided else ((), 0)
    return Place(tuple(tensor.shape), *where, tensor.dtype)


def rule_of(func: Any) -> Rule | None:
    """The rule of an operator: of this overload, of all its overloads, or by its tag."""
    name = func._schema.name
    rule = RULES.get(f"{name}.{func._overloadname}") or RULES.get(name)
    if rule is None and torch.Tag.nondeterministic_seeded in func.tags:
        return RULES["lopt::random"]
    if rule is None and torch.Tag.pointwise in func.tags:
        return RULES["lopt::pointwise"]
    return rule


def decomposed(func: Any, args: Any, kwargs: Any) -> Any:
    """The operator taken apart into others, or NotImplemented."""
    if func in decomposition_table and torch._C.DispatchKey.CompositeImplicitAutograd not in func.py_kernels:
        return decomposition_table[func](*args, **kwargs)
    return func.decompose(*args, **kwargs)


def not_understood(call: Call) -> None:
    """The rule of an operator that has none: all that it touches is fixed."""
    call.reason = call.reason._replace(unknown=True)
    call.tracer.record.unknown[call.reason] = None
    for tensor in call.tensors:
        call.fix(call.terms(tensor))
    for tensor in tensors_in(call.out):
        call.set(tensor, labels.constant(tensor.shape, call.reason))


class Escapes(TorchFunctionMode):
    """Sees the values that leave PyTorch, for numpy or for Python: what becomes of them cannot be followed."""

    LEAVING = (
        *("numpy", "__array__", "tolist", "__dlpack__", "__reduce_ex__", "__deepcopy__", "map_", "map2_", "apply_"),
        *("untyped_storage", "storage", "_typed_storage"),  # which pickle reads
    )

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.LEAVING:
            self._leave(args, Reason(f"Tensor.{name}", self.tracer.module, unknown=True))
        elif name == "__set__" and args and func is Tensor.data.__set__:  # type: ignore[attr-defined]
            self._leave(args, Reason("Tensor.data =", self.tracer.module, unknown=True))
        return func(*args, **(kwargs or {}))

    def _leave(self, args: Any, reason: Reason) -> None:
        if any([self.tracer.fix(tensor, reason) for tensor in tensors_in(args)]):
            self.tracer.record.unknown[reason] = None
