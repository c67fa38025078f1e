"""Two processes that train one network: run by test_distributed.py, once for all its tests.

python distributed_worker.py FOLDER RANK WORLD: writes what happened to FOLDER/rankR.pt.
"""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lopt import LearnedOptimizer

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))
STEPS = 4
SHARDED = ("sgdm", "adam", *common.NEURONS, "per_parameter")


def network() -> nn.Sequential:
    """Rows that two processes cannot share evenly (5, 1), a norm, and a parameter without an axis to shard."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)]
    return nn.Sequential(*layers)


def loss_of(model: nn.Module, step: int, rank: int, world: int) -> Tensor:
    g = torch.Generator().manual_seed(step)
    x, y = (torch.randn(16, n, generator=g).chunk(world)[rank] for n in (3, 1))
    return nn.functional.mse_loss(model(x), y)


def shard(model: nn.Sequential) -> nn.Module:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def optimizer_of(name: str, model: nn.Module, **options: Any) -> LearnedOptimizer:
    rule = common.build(name, model)
    return LearnedOptimizer(model.parameters(), common.LR[name], rule=rule, weight_decay=0.1, total_steps=9, **options)


def train(model: nn.Module, optimizer: LearnedOptimizer, first: int, last: int, rank: int = 0, world: int = 1) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        loss = loss_of(model, step, rank, world)
        loss.backward()
        optimizer.step(loss=loss)


def whole(x: Any) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def result(model: nn.Module, optimizer: LearnedOptimizer) -> dict[str, Any]:
    params = list(model.parameters())
    return {
        "weights": [whole(p) for p in params],
        "state": [{key: whole(x) for key, x in optimizer.state[p].items()} for p in params],
    }


def alone(name: str) -> dict[str, Any]:
    model = network()
    optimizer = optimizer_of(name, model)
    train(model, optimizer, 0, STEPS)
    return result(model, optimizer)


def parallel(name: str, kind: str, rank: int, world: int) -> dict[str, Any]:
    model: nn.Module = DistributedDataParallel(network()) if kind == "ddp" else shard(network())
    optimizer = optimizer_of(name, model)
    train(model, optimizer, 0, STEPS, rank, world)
    return result(model, optimizer)


def faults(name: str, kind: str, rank: int, world: int) -> dict[str, Any]:
    """A gradient that is bad on one process alone: all of them must skip."""
    model = shard(network())
    optimizer = optimizer_of(name, model)
    train(model, optimizer, 0, 1, rank, world)
    before = result(model, optimizer)
    loss_of(model, 1, rank, world).backward()
    grad: Any = next(model.parameters()).grad
    if rank == 1:
        grad.to_local().view(-1)[0] = torch.nan
    optimizer.step()
    return {"before": before, "after": result(model, optimizer), "skipped": optimizer.skipped_steps}


def saved_and_loaded(name: str, kind: str, rank: int, world: int, folder: Path, flat: bool) -> dict[str, Any]:
    """Half of the steps, a distributed checkpoint, and the other half in new objects."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    path = folder / f"{name}-{flat}"
    model = shard(network())
    optimizer = optimizer_of(name, model)
    train(model, optimizer, 0, STEPS // 2, rank, world)
    saved = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    save(saved, storage_writer=FileSystemWriter(path))
    other = shard(network())
    second = optimizer_of(name, other)
    fresh = [whole(p) for p in other.parameters()]
    target = {
        "model": get_model_state_dict(other),
        "optimizer": get_optimizer_state_dict(other, second, options=options),
    }
    untouched = all(torch.equal(a, whole(b)) for a, b in zip(fresh, other.parameters(), strict=True))
    steps = [float(second.state[p]["step"]) for p in other.parameters()]
    load(target, storage_reader=FileSystemReader(path))
    set_optimizer_state_dict(other, second, target["optimizer"], options=options)
    other.load_state_dict(target["model"])
    train(other, second, STEPS // 2, STEPS, rank, world)
    return {**result(other, second), "untouched": untouched, "steps": steps}


def wrapped_later(name: str, kind: str, rank: int, world: int) -> dict[str, Any]:
    """The optimizer is made first, and the wrapper puts its sharded parameters into the groups, as Accelerate does."""
    model = network()
    optimizer = optimizer_of(name, model)
    sharded = shard(model)
    optimizer.param_groups[0]["params"] = list(sharded.parameters())
    train(sharded, optimizer, 0, STEPS, rank, world)
    return result(sharded, optimizer)


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found: dict[tuple[str, str], Any] = {}
    for name in {**dict.fromkeys(common.ANY_NETWORK), **common.NEURONS}:
        found[name, "ddp"] = parallel(name, "ddp", rank, world)
        if name in SHARDED:
            found[name, "fsdp"] = parallel(name, "fsdp", rank, world)
            found[name, "wrapped later"] = wrapped_later(name, "fsdp", rank, world)
            found[name, "faults"] = faults(name, "fsdp", rank, world)
            for flat in (False, True):
                found[name, f"checkpoint {flat}"] = saved_and_loaded(name, "fsdp", rank, world, folder, flat)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
