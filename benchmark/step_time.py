"""python -m benchmark.step_time: what a step costs, in time and memory, side by side with torch.optim.Adam.

Fresh memory costs some optimizers more than arithmetic, and how much depends on the allocator. So everything is
measured in two processes of its own: under glibc's defaults, and with an allocator that keeps what it has freed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmark.layer_cases import Row
from benchmark.layers import ALLOCATORS, table
from benchmark.results import hardware, versions
from benchmark.step_time_cases import GPU_CASES, rows
from lopt.rules.neuron.kernels import kernels_here


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes the rows where --json says."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.step_time", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch (default 2)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: {options.threads}; at least one is needed")
    torch.set_num_threads(options.threads)
    device = torch.device("cuda") if torch.cuda.is_available() else None
    if options.worker:
        print(json.dumps([row._asdict() for row in rows(device)]))
        return 0
    found = {name: _measure(tunables, options.threads) for name, tunables in ALLOCATORS.items()}
    if options.json is not None:
        content = [
            {**row._asdict(), "case": f"{row.case}, {name} allocator"}
            for name, measured in found.items()
            for row in measured
        ]
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table(found))
    console.print(f"python -m benchmark.step_time --threads {options.threads}", markup=False)
    machine = {**hardware(device or torch.device("cpu")), **versions(), "kernels": kernels_here()}
    console.print(", ".join(f"{k} {v}" for k, v in machine.items()), markup=False)
    if device is None:
        console.print(f"Left out, since there is no CUDA device: {', '.join(case.name for case in GPU_CASES)}")
    return 0


def _measure(tunables: str, threads: int) -> list[Row]:
    """The rows under one setting of the allocator, measured in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    environment |= {"OMP_NUM_THREADS": str(threads)} | ({"GLIBC_TUNABLES": tunables} if tunables else {})
    command = [sys.executable, "-m", "benchmark.step_time", "--worker", "--threads", str(threads)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    sys.exit(main())
