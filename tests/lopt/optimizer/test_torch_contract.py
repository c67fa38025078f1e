"""The checks that PyTorch runs on its own optimizers, with bodies of ours; torch.optim.Adam passes the same ones.

PyTorch describes each of its optimizers by an `OptimizerInfo` (constructor arguments to try, errors to expect) in a
private module, which no other file of ours imports, and runs about 57 checks on each. One row of `CHECKS` is one of
them; a second name in brackets is a variant. What they look at:

    errors, repr, non-empty state                    what the constructor refuses, and what it leaves
    right direction, group with a schedule           contiguous or not, with schedulers, by list or one by one
    tensor lr, param groups                          0, 1 and 2 dimensions; lr and weight decay for each group
    foreach is the loop                              float32, float64, a default dtype of another width
    no gradients, zero gradients                     nothing happens
    state_dict                                       deterministic, named to unnamed and back, older, weights_only,
                                                     a step that is no tensor, from a captured optimizer
    hooks                                            of step, of all optimizers, of state_dict and of load_state_dict
    deepcopy, pickle                                 all public attributes, and the same next steps
    compiled, scaled                                 torch.compile of the step, GradScaler
    complex, sparse                                  supported or refused with a clear error

Those that want a GPU are in test_cuda.py.
"""

import copy
import functools
import itertools
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
    optim_db,
)

from lopt import InvalidInput, LearnedOptimizer, WeightSpace
from tests.lopt.optimizer.common import build

ADAM = next(info for info in optim_db if info.optim_cls is torch.optim.Adam)


def learned(name: str) -> type[LearnedOptimizer]:
    """LearnedOptimizer with a default rule, as PyTorch's checks call optimizers without one."""
    rule = build(name, nn.Module())

    class Learned(LearnedOptimizer):
        def __init__(self, params: Any, lr: Any = None, **options: Any) -> None:
            super().__init__(params, lr, rule=rule, **options)

    return Learned


def inputs(device: Any, dtype: Any = None) -> list[OptimizerInput]:
    arguments: dict[str, dict[str, Any]] = {
        "default": {"lr": 1e-3},
        "maximize": {"lr": 1e-3, "weight_decay": 0.1, "maximize": True},
        "tensor lr, capturable": {"lr": torch.tensor(0.001), "capturable": True},
        "horizon": {"lr": 0.01, "total_steps": 50, "on_nonfinite": "raise", "weight_decay": 0.1},
    }
    none: Any = None
    return [OptimizerInput(params=none, kwargs=kwargs, desc=desc) for desc, kwargs in arguments.items()]


def group_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the constructor's arguments that a param group takes, too."""
    return {key: value for key, value in kwargs.items() if key not in ("total_steps", "on_nonfinite")}


def error_inputs(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
    def refused(regex: str, params: Any = None, on: Any = OptimizerErrorEnum.CONSTRUCTION_ERROR, **kwargs: Any) -> Any:
        given = OptimizerInput(params=params, kwargs=kwargs)
        error: Any = ValueError
        return ErrorOptimizerInput(given, error_on=on, error_type=error, error_regex=regex)

    sparse = nn.Parameter(torch.ones(3, 2))
    sparse.grad = torch.ones(3, 2).to_sparse()
    return [
        *get_error_inputs_for_all_optims(device, dtype),
        refused("Invalid learning rate: -0.01", lr=-0.01),
        refused("Invalid weight_decay value: -1", weight_decay=-1),
        refused("Invalid total_steps: 0", total_steps=0),
        refused("on_nonfinite: 'ignore'", on_nonfinite="ignore"),
        refused("complex parameters are not supported", [torch.ones(2, dtype=torch.complex64)]),
        refused("weight_space", [torch.ones(2)], weight_space=WeightSpace({"w": "3"})),
        refused("is sparse", [sparse], OptimizerErrorEnum.STEP_ERROR),
    ]


def describe(name: str) -> OptimizerInfo:
    return OptimizerInfo(
        learned(name),  # pyright: ignore[reportArgumentType]
        optim_inputs_func=inputs,
        optim_error_inputs_func=error_inputs,
        scheduler_inputs=ADAM.scheduler_inputs,
        supported_impls=("foreach",),
        not_og_supported_flags=("foreach", "maximize", "capturable"),
        has_capturable_arg=True,
        supports_complex=False,
        supports_multiple_devices=False,
    )


INFOS = {"torch.optim.Adam": ADAM} | {f"LearnedOptimizer({name})": describe(name) for name in ("adam", "neuron")}
CHECKS: dict[str, Callable[[OptimizerInfo], None]] = {}


def check(**variants: list) -> Callable:
    """Registers a check, once for each combination of the variants."""

    def register(body: Callable) -> Callable:
        for values in itertools.product(*variants.values()):
            suffix = f" [{', '.join(f'{k}={v}' for k, v in zip(variants, values, strict=True))}]" if values else ""
            CHECKS[body.__name__ + suffix] = functools.partial(body, **dict(zip(variants, values, strict=True)))
        return body

    return register


# --- what the checks share -------------------------------------------------------------------------------------------


def every(info: OptimizerInfo) -> list[dict[str, Any]]:
    """The constructor's arguments of every configuration, written one by one and by lists."""
    found = [c.kwargs for c in info.optim_inputs_func("cpu")]
    return [{**copy.deepcopy(kwargs), "foreach": foreach} for kwargs in found for foreach in (False, True)]


def each(info: OptimizerInfo) -> list[dict[str, Any]]:
    """The same, written in one of the two ways: for what is saved and copied, which does not depend on it."""
    return [kwargs for i, kwargs in enumerate(every(info)) if (i // 2 + i) % 2]


def parameters(named: bool = False, *shapes: tuple[int, ...]) -> list:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes or ((10, 5), (10,))]
    return [(f"p{i}", p) for i, p in enumerate(params)] if named else params


def plain(params: list) -> list[nn.Parameter]:
    return [p[1] if isinstance(p, tuple) else p for p in params]


def loss_of(weight: Tensor, bias: Tensor) -> Tensor:
    x = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype)
    return (weight.mv(x) + bias).square().sum()


def closure_for(optimizer: torch.optim.Optimizer, params: list) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(*plain(params)[:2])
        loss.backward()
        return loss

    return closure


def climbs(optimizer: torch.optim.Optimizer) -> bool:
    return optimizer.param_groups[0].get("maximize", False)


def run(optimizer: torch.optim.Optimizer, params: list, steps: int = 3, schedulers: Any = ()) -> None:
    """Steps in the right direction, each with a closure, followed by the schedulers."""
    closure = closure_for(optimizer, params)
    first = float(closure().detach())
    made = [make(optimizer) for make in schedulers]
    for _ in range(steps):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType, reportCallIssue]
        for scheduler in made:
            scheduler.step(closure()) if type(scheduler).__name__ == "ReduceLROnPlateau" else scheduler.step()
    last = float(closure().detach())
    assert last > first if climbs(optimizer) else last < first


def alike(one: Any, other: Any, **tolerance: Any) -> None:
    """Two trees of tensors and other values are the same."""
    assert type(one) is type(other) or isinstance(one, Tensor)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            alike(one[key], other[key], **tolerance)
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            alike(a, b, **tolerance)
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one, other, **tolerance)
    else:
        assert one == other


# --- constructing ----------------------------------------------------------------------------------------------------


@check()
def arguments_do_not_choose_the_implementation(info):
    for c in info.optim_inputs_func("cpu"):
        assert not {"foreach", "fused", "differentiable"} & set(c.kwargs)


@check()
def errors(info):
    for error in info.optim_error_inputs_func("cpu", torch.float32):
        given = error.optimizer_error_input
        warned = issubclass(error.error_type, Warning)
        context: Any = (pytest.warns if warned else pytest.raises)(error.error_type, match=error.error_regex)
        if error.error_on == OptimizerErrorEnum.STEP_ERROR:
            optimizer = info.optim_cls(given.params, **given.kwargs)
            with context:
                optimizer.step()
        else:
            with context:
                info.optim_cls(given.params, **given.kwargs)


@check()
def it_can_be_printed(info):
    for kwargs in every(info):
        text = repr(info.optim_cls(parameters(), **kwargs))
        assert re.search(r"Parameter Group 0\n", text) and f"foreach: {kwargs['foreach']}" in text


@check()
def the_state_is_not_empty(info):
    for kwargs in every(info):
        params = parameters()
        optimizer = info.optim_cls(params, **kwargs)
        run(optimizer, params, 1)
        assert all(len(optimizer.state[p]) for p in params)


# --- stepping --------------------------------------------------------------------------------------------------------


@check(contiguous=[True, False], scheduled=[False, True], foreach=[False, True])
def the_right_direction(info, contiguous, scheduled, foreach):
    lists: Any = info.scheduler_inputs[2:4] if scheduled else [()]
    for c, schedulers in itertools.product(info.optim_inputs_func("cpu"), lists):
        params = parameters()
        if not contiguous:
            params = [nn.Parameter(torch.stack([p.detach()] * 2, -1)[..., 0]) for p in params]
            assert not params[0].is_contiguous()
        optimizer = info.optim_cls(params, **{**c.kwargs, "foreach": foreach})
        run(optimizer, params, 4, schedulers)


@check()
def a_group_with_a_schedule_goes_in_the_right_direction(info):
    for schedulers in info.scheduler_inputs:
        weight, bias = params = parameters()
        optimizer = info.optim_cls([{"params": [weight]}, {"params": [bias], "lr": 0.01}], lr=1e-3)
        run(optimizer, params, 4, schedulers)


@check(dimensions=[0, 1, 2], scheduled=[False, True])
def a_tensor_lr(info, dimensions, scheduled):
    for kwargs in every(info):
        if info is ADAM and kwargs["foreach"]:
            continue  # there it wants a GPU
        kwargs["lr"] = 1e-2
        numbers, tensors = parameters(), parameters()
        schedulers = info.scheduler_inputs[0] if scheduled else ()
        rate = torch.full((1,) * dimensions, 1e-2)
        run(info.optim_cls(numbers, **kwargs), numbers, 2, schedulers)
        run(optimizer := info.optim_cls(tensors, **{**kwargs, "lr": rate}), tensors, 2, schedulers)
        alike(numbers, tensors)
        if not scheduled:
            assert optimizer.param_groups[0]["lr"] is rate


@check()
def groups_with_their_own_lr(info):
    for kwargs in every(info):
        kwargs = group_options(kwargs) | {"lr": 1e-3}
        weight, bias = params = parameters()
        idle = nn.Parameter(torch.randn(2))
        before, idle.grad = idle.detach().clone(), torch.rand(2)
        optimizer = info.optim_cls([{"params": params, **kwargs}, {"params": [idle]}], lr=1e-28)
        run(optimizer, params)
        alike(idle.detach(), before)


@check()
def groups_with_their_own_weight_decay(info):
    for kwargs in every(info):
        kwargs = group_options(kwargs)
        params = parameters()
        weight, bias = params
        groups = [{"params": [weight], **kwargs}, {"params": [bias], **kwargs, "weight_decay": 0.0}]
        run(info.optim_cls(groups), params)


@check(dtype=[torch.float32, torch.float64])
def lists_are_the_loop(info, dtype):
    for c in info.optim_inputs_func("cpu"):
        results = []
        for foreach in (False, True):
            params = [nn.Parameter(p.detach().to(dtype)) for p in parameters(False, (10, 5), (10,), (), (0, 3))]
            params[2].grad, params[3].grad = torch.ones((), dtype=dtype), torch.ones((0, 3), dtype=dtype)
            optimizer = info.optim_cls(params, **{**c.kwargs, "foreach": foreach})
            for i in range(7):
                optimizer.zero_grad()
                if i != 3:  # then nothing is to happen
                    (loss_of(*params[:2]) + params[2].square() + params[3].sum()).backward()
                optimizer.step()
            results.append((params, [optimizer.state[p] for p in params]))
        alike(*results)


@check(default=[torch.float64, torch.float16])
def another_default_dtype(info, default):
    wanted = torch.float64 if default == torch.float64 and info is ADAM else torch.float32
    usual = torch.get_default_dtype()
    for foreach in (False, True):
        params = parameters()
        try:
            torch.set_default_dtype(default)
            optimizer = info.optim_cls(params, lr=1e-3, foreach=foreach)
            run(optimizer, params)
        finally:
            torch.set_default_dtype(usual)
        assert optimizer.state[params[0]]["step"].dtype == wanted


@check()
def nothing_happens_without_gradients(info):
    for kwargs in every(info):
        params = [torch.randn(2, 3) for _ in range(2)]
        before = copy.deepcopy(params)
        optimizer = info.optim_cls(params, **kwargs)
        assert optimizer.step(lambda: torch.tensor([1.0])) == 1
        alike(params, before)
        assert not any(optimizer.state.values())


@check()
def nothing_happens_for_gradients_of_zero(info):
    for kwargs in every(info):
        if kwargs.get("weight_decay"):
            continue
        p = nn.Parameter(torch.randn(5, 1))
        before, p.grad = p.detach().clone(), torch.zeros(5, 1)
        info.optim_cls([p], **kwargs).step(lambda: torch.tensor([1.0]))
        if info is ADAM or type(info.optim_cls([p]).rule).__name__ == "Adam":  # others move by other signals
            alike(p.detach(), before)
        assert p.isfinite().all()


@check(shape=[(10,), (10, 5)])
def complex_parameters(info, shape):
    p = torch.randn(shape, dtype=torch.complex64, requires_grad=True)
    if not info.supports_complex:
        with pytest.raises(InvalidInput, match="torch.view_as_real"):
            info.optim_cls([p])
    real = torch.view_as_real(p.detach()).clone().requires_grad_()
    params = [real, p] if info.supports_complex else [real]
    for q in params:
        q.grad = torch.view_as_complex(torch.ones(*shape, 2)) if q.is_complex() else torch.ones(*shape, 2)
    info.optim_cls(params).step()
    assert not torch.equal(real, torch.view_as_real(p)) or info.supports_complex


@check()
def sparse_gradients_are_refused(info):
    p = nn.Parameter(torch.ones(5, 1))
    p.grad = torch.ones(5, 1).to_sparse()
    optimizer = info.optim_cls([p])
    with pytest.raises((RuntimeError, InvalidInput), match="[Ss]parse"):
        optimizer.step()
    alike(p.detach(), torch.ones(5, 1))


@check(set_to_none=[True, False])
def zero_grad(info, set_to_none):
    for kwargs in every(info):
        params = parameters()
        optimizer = info.optim_cls(params, **kwargs)
        loss_of(*params).backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        assert all(p.grad is None if set_to_none else not p.grad.any() for p in params)


@check()
def a_closure_is_called_with_gradients_enabled(info):
    params, seen = parameters(), []
    optimizer = info.optim_cls(params)

    def closure() -> Tensor:
        seen.append(torch.is_grad_enabled())
        return closure_for(optimizer, params)()

    with torch.no_grad():
        assert optimizer.step(closure) > 0
    assert seen == [True] and torch.is_grad_enabled()


@check()
def the_profiler_sees_it(info):
    params = parameters()
    optimizer = info.optim_cls(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step(closure_for(optimizer, params))
    names, cls = {event.key for event in profile.key_averages()}, info.optim_cls.__name__
    assert {f"Optimizer.step#{cls}.step", f"Optimizer.zero_grad#{cls}.zero_grad"} <= names


@check(changing=[False, True])
def the_compiled_step_is_the_step(info, changing):
    """Once against a plain step that writes by lists, once against one that writes one by one."""
    results = []
    for backend in (None, "eager"):
        params = parameters(False, (4, 3), (4,))
        options: Any = {"weight_decay": 0.1, "maximize": True} if changing else {}
        optimizer = info.optim_cls(params, lr=1e-2, foreach=not changing, **options)
        step = optimizer.step if backend is None else torch.compile(optimizer.step, backend=backend)
        closure = closure_for(optimizer, params)
        for i in range(3):
            if changing:
                optimizer.param_groups[0]["lr"] = 1e-2 / (1 + i)
            closure()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler
                step()
        results.append((params, [optimizer.state[p] for p in params]))
    torch.compiler.reset()
    alike(*results)


@check(found=[False, True])
def a_scaled_step(info, found):
    params, unscaled = parameters(), parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer, twin = info.optim_cls(params), info.optim_cls(unscaled)
    for i in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(*params)).backward()
        closure_for(twin, unscaled)()
        if found and i == 1:
            params[0].grad[0, 0] = torch.inf
        else:
            twin.step()
        scaler.step(optimizer)
        scaler.update()
    alike(params, unscaled)
    assert scaler.get_scale() == (32 if found else 64)


# --- state_dict ------------------------------------------------------------------------------------------------------


@check(named=[False, True], scheduled=[False, True])
def the_state_dict_is_deterministic(info, named, scheduled):
    for kwargs in each(info):
        params = parameters(named)
        optimizer = info.optim_cls(params, **kwargs)
        schedulers = info.scheduler_inputs[0] if scheduled else ()
        run(optimizer, params, 2, schedulers)
        twins: list = [nn.Parameter(p.detach().clone()) for p in plain(params)]
        twins = [(name, q) for (name, _), q in zip(params, twins, strict=True)] if named else twins
        other = info.optim_cls(twins, **kwargs)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(2):
            optimizer.step(closure_for(optimizer, params))
            other.step(closure_for(other, twins))
            alike(plain(params), plain(twins), rtol=0, atol=0)
        alike(optimizer.state_dict(), other.state_dict(), rtol=0, atol=0)
        other.param_groups.extend(other.param_groups)  # the same parameters once more look the same
        alike(optimizer.state_dict()["param_groups"][-1], other.state_dict()["param_groups"][-1])


@check(named=[False, True])
def an_older_state_dict(info, named):
    new = ("maximize", "foreach", "fused", "differentiable", "capturable", "skipped_steps", "rule")
    for kwargs in each(info):
        params = parameters(named)
        optimizer = info.optim_cls(params, **kwargs)
        run(optimizer, params, 2)
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            for key in new:
                group.pop(key, None)
        optimizer.load_state_dict(saved)
        optimizer.step(closure_for(optimizer, params))


@check(named=[False, True], into_named=[False, True])
def from_named_to_unnamed_and_back(info, named, into_named):
    for kwargs in each(info):
        params, twins = parameters(named), parameters(into_named)
        optimizer, other = info.optim_cls(params, **kwargs), info.optim_cls(twins, **kwargs)
        run(optimizer, params, 2)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        with torch.no_grad():
            for p, q in zip(plain(params), plain(twins), strict=True):
                q.copy_(p)
        assert ("param_names" in other.param_groups[0]) == (named or into_named)
        optimizer.step(closure_for(optimizer, params))
        other.step(closure_for(other, twins))
        alike(plain(params), plain(twins), rtol=0, atol=0)


@check(named=[False, True])
def saving_with_weights_only(info, named):
    for kwargs in each(info):
        params, file = parameters(named), BytesIO()
        optimizer = info.optim_cls(params, **kwargs)
        run(optimizer, params, 2)
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        alike(torch.load(file, weights_only=True), optimizer.state_dict(), rtol=0, atol=0)


@check()
def a_step_that_is_no_tensor(info):
    for kwargs in each(info):
        params = parameters()
        optimizer = info.optim_cls(params, **kwargs)
        run(optimizer, params, 2)
        saved = copy.deepcopy(optimizer.state_dict())
        for entry in saved["state"].values():
            entry["step"] = entry["step"].item()
        optimizer.load_state_dict(saved)
        optimizer.step(closure_for(optimizer, params))
        assert optimizer.state[params[0]]["step"] == 3


@check()
def a_state_from_a_captured_optimizer(info):
    params = parameters()
    optimizer = info.optim_cls(params)
    run(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["capturable"] = True
    other = info.optim_cls(params)
    other.load_state_dict(saved)
    assert other.param_groups[0]["capturable"]
    if info is not ADAM:  # on a GPU alone
        other.step(closure_for(other, params))
    alike(other.state_dict()["state"].keys(), optimizer.state_dict()["state"].keys())


@check(way=["copy", "pickle"])
def a_copy_has_all_public_attributes_and_steps_alike(info, way):
    for kwargs in each(info):
        params = parameters()
        optimizer = info.optim_cls(params, **kwargs)
        run(optimizer, params, 2)
        if way == "copy":
            other, twins = copy.deepcopy((optimizer, params))
        else:  # a class of this module's own making cannot be found by its name
            state = pickle.loads(pickle.dumps((optimizer.__getstate__(), params)))
            other, twins = info.optim_cls.__new__(info.optim_cls), state[1]
            other.__setstate__(state[0])
        public = ({key for key in vars(o) if not key.startswith("_")} for o in (optimizer, other))
        alike(*(sorted(keys) for keys in public))
        optimizer.step(closure_for(optimizer, params))
        other.step(closure_for(other, twins))
        alike(params, twins, rtol=0, atol=0)


# --- hooks -----------------------------------------------------------------------------------------------------------


@check(when=["pre", "post"])
def hooks_of_step(info, when):
    params, seen = parameters(), []
    optimizer = info.optim_cls(params)
    register = optimizer.register_step_pre_hook if when == "pre" else optimizer.register_step_post_hook
    handle = register(lambda opt, args, kwargs: seen.append((opt is optimizer, copy.deepcopy(params))))
    closure_for(optimizer, params)()
    before = copy.deepcopy(params)
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert len(seen) == 1 and seen[0][0]
    assert torch.equal(seen[0][1][0], before[0]) == (when == "pre")


@check()
def all_hooks_run_in_order(info):
    params, seen = parameters(), []
    optimizer = info.optim_cls(params)
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("all pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("all post")),
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
    ]
    optimizer.step(closure_for(optimizer, params))
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert seen == ["all pre", "pre", "post", "all post"]


@check(when=["pre", "post", "both"])
def hooks_of_state_dict(info, when):
    params, seen = parameters(), []
    optimizer = info.optim_cls(params)
    if when != "post":
        optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre"))
        optimizer.register_state_dict_pre_hook(lambda opt: seen.append("first"), prepend=True)
    if when != "pre":
        optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "mine": 1})
    assert optimizer.state_dict().get("mine", 0) == (when != "pre")
    assert seen == ([] if when == "post" else ["first", "pre"])


@check(when=["pre", "post", "both"])
def hooks_of_load_state_dict(info, when):
    params, seen = parameters(), []
    optimizer = info.optim_cls(params)
    run(optimizer, params, 2)

    def double(opt: torch.optim.Optimizer, state: dict) -> dict:
        entries = {i: {**entry, "step": entry["step"] * 2} for i, entry in state["state"].items()}
        return {**state, "state": entries}

    if when != "post":
        optimizer.register_load_state_dict_pre_hook(double)
        optimizer.register_load_state_dict_pre_hook(lambda opt, state: seen.append("first"), prepend=True)
    if when != "pre":
        optimizer.register_load_state_dict_post_hook(lambda opt: seen.append(float(opt.state[params[0]]["step"])))
        optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("before"), prepend=True)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded = 2.0 if when == "post" else 4.0
    assert optimizer.state[params[0]]["step"] == loaded
    assert seen == {"pre": ["first"], "post": ["before", loaded], "both": ["first", "before", loaded]}[when]


# --- run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def count() -> Iterator[dict[str, int]]:
    """Prints how many of the checks each optimizer passed; pytest -s shows it."""
    passed = dict.fromkeys(INFOS, 0)
    yield passed
    print(f"\n{len(CHECKS)} checks; passed: " + ", ".join(f"{k} {n}" for k, n in passed.items()))


def test_there_are_as_many_checks_as_pytorch_has():
    assert len(CHECKS) >= 57


@pytest.mark.parametrize("name", INFOS)
@pytest.mark.parametrize("check", CHECKS)
def test_check(check, name, count):
    CHECKS[check](INFOS[name])
    count[name] += 1
