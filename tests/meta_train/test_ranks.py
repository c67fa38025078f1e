"""Several processes: the same θ as one, by the command that a person types; and words where one is lost."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from lopt import load_rule
from meta_train.cli import CONFIGS
from meta_train.ranks import WorkerLost, any_rank, joined, mean_over_ranks, place_on_machine
from meta_train.record import read_log
from tests.meta_train.forked import Forked

ROOT = CONFIGS.parent
TINY = ["family=quadratic", "rule=per_parameter", "estimator.pairs=2", "estimator.truncation=3", "estimator.horizon=6"]
TINY += ["validation.horizon=6", "validation.truncation=3", "validation.every=2", "validation.members=3"]


def environment():
    clean = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    return {**clean, "OMP_NUM_THREADS": "1"}


def launch(words):
    return subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def theta(path):
    return torch.cat([p.detach().flatten() for p in load_rule(path).parameters()])


def test_two_processes_find_the_theta_of_one(tmp_path):
    """Half of the steps with torchrun; the rest with Lightning's own launcher, from the first half's checkpoint."""
    command = ["-m", "meta_train", *TINY, "name=tiny"]
    alone = Forked(tmp_path / "printed", *command[2:], f"out={tmp_path / 'one'}", "steps=4")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = [*command, f"out={tmp_path / 'two'}", "trainer.devices=2"]
    first = launch([*torchrun, *both, "trainer.strategy=ddp", "steps=2"])
    _, stderr = first.communicate(timeout=600)
    assert first.returncode == 0, stderr
    second = launch([sys.executable, *both, "steps=4", "ckpt_path=auto"])
    for process in (second, alone):
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
    one, two = (theta(tmp_path / name / "rule.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    assert not torch.equal(one, theta(tmp_path / "one" / "initial.safetensors"))
    for here, there in zip(*(read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")), strict=True):
        assert here.keys() == there.keys()
        assert here["meta_loss"] == pytest.approx(there["meta_loss"], rel=1e-5)


def test_a_lost_worker_is_said_in_words(tmp_path):
    out = tmp_path / "run"
    process = launch([sys.executable, "-m", "meta_train", *TINY, f"out={out}", "steps=100000", "trainer.devices=2"])
    log, deadline = out / "log.jsonl", time.monotonic() + 600
    while not (log.exists() and log.read_text()) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 3, stderr
    assert "lost another process of the run" in stderr and f"resume with ckpt_path={out}/last.ckpt" in stderr


def children(parent):
    """Processes of our own command that this one started."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat") as file:
                    after = file.read().rpartition(")")[2].split()
                with open(f"/proc/{entry.name}/cmdline") as file:
                    words = file.read()
            except OSError:  # it has just ended
                continue
            if int(after[1]) == parent and "meta_train" in words:
                found.append(int(entry.name))
    return found


def talk(rank, port, results):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mean = mean_over_ranks({"a": torch.tensor([1.0, 2.0]) + rank, "b": torch.tensor(4.0 * rank)})
    wish = any_rank(rank == 1, torch.device("cpu"))
    parts = joined([{"pairs": torch.arange(2) + 2 * rank, "iteration": torch.tensor(7)}])
    torch.distributed.barrier()
    if rank == 0:
        torch.save((mean, wish, parts), results)
    torch.distributed.destroy_process_group()


def test_what_processes_tell_each_other(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(talk, (port, str(tmp_path / "results")), nprocs=2, start_method="fork")
    mean, wish, parts = torch.load(tmp_path / "results", weights_only=True)
    assert mean["a"].tolist() == [1.5, 2.5] and float(mean["b"]) == 2.0 and wish
    assert parts[0]["pairs"].tolist() == [0, 1, 2, 3] and int(parts[0]["iteration"]) == 7


@pytest.mark.parametrize(
    ("told", "place"),
    [({}, 0), ({"LOCAL_RANK": "3"}, 3), ({"SLURM_LOCALID": "2"}, 2), ({"LOCAL_RANK": "0", "SLURM_LOCALID": "2"}, 0)],
)
def test_each_process_knows_its_place_before_any_message(monkeypatch, told, place):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert place_on_machine() == place


def test_alone_nothing_is_said():
    assert mean_over_ranks({"a": torch.tensor(3.0)}) == {"a": torch.tensor(3.0)}
    assert any_rank(True, torch.device("cpu")) and not any_rank(False, torch.device("cpu"))
    assert issubclass(WorkerLost, RuntimeError)
