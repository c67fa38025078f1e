"""Two processes train as one: DDP, FSDP2 with uneven shards, and torch.distributed.checkpoint."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.lopt.optimizer.common import ANY_NETWORK, NEURONS

WORKER = Path(__file__).with_name("distributed_worker.py")
worker = SimpleNamespace(**runpy.run_path(str(WORKER)))
WORLD = 2


@pytest.fixture(scope="module")
def came(tmp_path_factory) -> list[dict[Any, Any]]:
    """What each process has found."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), str(WORLD)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=1e-5)
    torch.testing.assert_close(one["state"], other["state"], rtol=1e-4, atol=1e-5)


def test_something_happens():
    moved = [a - b for a, b in zip(worker.alone("neuron")["weights"], worker.network().parameters(), strict=True)]
    assert all(float(x.detach().abs().max()) > 1e-3 for x in moved)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "ddp") for name in {**dict.fromkeys(ANY_NETWORK), **NEURONS}]
    + [(name, kind) for name in worker.SHARDED for kind in ("fsdp", "wrapped later")],
)
def test_two_processes_make_the_updates_of_one(came, name, kind):
    for rank in range(WORLD):
        close(came[rank][name, kind], worker.alone(name))
    torch.testing.assert_close(came[0][name, kind], came[1][name, kind], rtol=0, atol=0)


@pytest.mark.parametrize("name", worker.SHARDED)
def test_a_bad_gradient_on_one_process_is_skipped_on_all(came, name):
    for rank in range(WORLD):
        found = came[rank][name, "faults"]
        assert found["skipped"] == 1
        torch.testing.assert_close(found["after"], found["before"], rtol=0, atol=0)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", worker.SHARDED)
def test_a_distributed_checkpoint_resumes(came, name, flat):
    for rank in range(WORLD):
        found = came[rank][name, f"checkpoint {flat}"]
        assert found["untouched"]  # by the step that makes a state to load into
        assert set(found["steps"]) == {0.0}
        torch.testing.assert_close(found["weights"], came[rank][name, "fsdp"]["weights"], rtol=0, atol=0)
        torch.testing.assert_close(found["state"], came[rank][name, "fsdp"]["state"], rtol=0, atol=0)
