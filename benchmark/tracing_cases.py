"""What `python -m benchmark.tracing` measures: how long a trace takes, without its verification.

The dozen of networks is traced in one process. Each large model gets a process of its own, so that what it needs of
memory is seen, and its first trace is what is timed: nobody traces a model twice.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmark.layer_cases import Row
from benchmark.timm_import import load_timm
from benchmark.tracing_models import NETWORKS
from lopt.tracing import analyse

REPEATS = 3
TOKENS = 16

# --- the small networks ----------------------------------------------------------------------------------------------


def small() -> list[Row]:
    """A row for each network of the dozen, and one for all."""
    warm_up = nn.Linear(2, 2)
    analyse(warm_up, torch.randn(2, 2), verify=False)
    rows, times = [], []
    for name, make in NETWORKS.items():
        module, inputs = make()
        seconds = statistics.median(_seconds(module, inputs) for _ in range(REPEATS))
        times.append(seconds)
        rows.append(Row(name, "trace", 1000 * seconds, "ms", "", "", None))
    median = 1000 * statistics.median(times)
    of_all = f"median of {len(times)} networks"
    return [*rows, Row(of_all, "trace", median, "ms", "prototype 60 ms", "< 100", median < 100)]


def _seconds(module: nn.Module, inputs: tuple[Any, ...], **options: Any) -> float:
    start = time.perf_counter()
    analyse(module, *inputs, verify=False, **options)
    return time.perf_counter() - start


# --- the large ones --------------------------------------------------------------------------------------------------


def large() -> list[Row]:
    """The rows of every large model, each measured in a process of its own."""
    rows = []
    for name in LARGE:
        command = [sys.executable, "-m", "benchmark.tracing_cases", name]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows += [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    return rows


def resnet50() -> list[Row]:
    """ResNet-50 on two images of 224 x 224."""
    model = load_timm().create_model("resnet50")
    seconds = _seconds(model, (torch.randn(2, 3, 224, 224),))
    return [Row("ResNet-50, 224 x 224", "trace", seconds, "s", "", "< 2", seconds < 2)]


def gpt2() -> list[Row]:
    """GPT-2 small on two texts."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    seconds = _seconds(model, (_text(),), output=_logits, use_cache=False)
    return [Row(f"GPT-2 small, {TOKENS} tokens", "trace", seconds, "s", "", "< 2", seconds < 2)]


def llama() -> list[Row]:
    """Llama-7B from its configuration: fake tensors, so no weights."""
    before = peak_memory()
    with FakeTensorMode():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    seconds = _seconds(model, (_text(),), output=_logits, use_cache=False)
    memory = (peak_memory() - before) / 1e6
    case = "Llama-7B, fake tensors"
    return [
        Row(case, "trace", seconds, "s", "prototype 2.8 s", "<= 10", seconds <= 10),
        Row(case, "peak memory, beyond the imports", memory, "MB", "prototype 366 MB", "<= 1000", memory <= 1000),
    ]


LARGE: dict[str, Callable[[], list[Row]]] = {"resnet50": resnet50, "gpt2": gpt2, "llama": llama}


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _text() -> torch.Tensor:
    return torch.arange(2 * TOKENS).view(2, TOKENS)


def _logits(out: Any) -> torch.Tensor:
    return out.logits


def main(arguments: Sequence[str]) -> None:
    """The process of one large model: prints its rows."""
    torch.set_num_threads(1)
    print(json.dumps([row._asdict() for row in LARGE[arguments[0]]()]))


if __name__ == "__main__":
    main(sys.argv[1:])
