"""`python -m meta_train` without the seconds that its imports take: in a fork of the test's own process."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import torch

from meta_train.cli import CONFIGS


class Forked:
    """The command with these words, as `subprocess.Popen` would run it; what it prints goes to files in `folder`."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.printed = folder / "stdout", folder / "stderr"
        folder.mkdir(parents=True, exist_ok=True)
        self.process = multiprocessing.get_context("fork").Process(target=_main, args=(words, self.printed))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it printed, once it has ended."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it has not ended"
        out, err = (path.read_text() for path in self.printed)
        return out, err


def _main(words: tuple[str, ...], printed: tuple[Path, Path]) -> None:
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)  # the parent's other threads are not copied, and OpenMP would wait for them
    os.chdir(CONFIGS.parent)
    sys.argv = ["meta_train", *words]
    runpy.run_module("meta_train", run_name="__main__", alter_sys=True)
