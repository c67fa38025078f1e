"""One model of the zoo after the other, in a process that may be ended when one of them takes too long.

The process says "ready", and then answers every line "family name" with a `Finding` in JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from lopt.tracing import analyse

READY = "ready"


class Specimen(NamedTuple):
    """A model with an example that it runs on; `output` picks what matters out of what it returns."""

    module: nn.Module
    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Callable[[Any], Any] | None = None


Build: TypeAlias = Callable[[str, str], Specimen]


class Finding(NamedTuple):
    """What became of a model.

    Attributes:
        family: the type of a language model, the module that defines an image model.
        outcome: "verified"; "failed" (groups did not hold); "raised" (an error in the trace or the verification);
            "too slow"; "skipped" (it did not build, or did not run).
        why: the error, or the groups that failed.
        share: of the parameters' elements, how many can be permuted.
        tracing, verification: seconds.
        refused: operators without a rule, and where they ran.
        unused: parameters that the example did not use, or not wholly.
        untested: groups of which the verification could not tell anything.
    """

    family: str
    name: str
    outcome: str
    why: str = ""
    parameters: int = 0
    groups: int = 0
    share: float = 0.0
    tracing: float | None = None
    verification: float | None = None
    refused: tuple[str, ...] = ()
    unused: int = 0
    untested: int = 0


def examine(family: str, name: str, build: Build) -> Finding:
    """Builds a model, traces it, verifies it."""
    try:
        module, inputs, kwargs, output = build(family, name)
    except Exception as error:
        return Finding(family, name, "skipped", _words(error))
    found = Finding(family, name, "raised", parameters=sum(p.numel() for p in module.parameters()))
    try:
        start = time.perf_counter()
        analysis = analyse(module, *inputs, verify=False, output=output, **kwargs)
        found = found._replace(
            tracing=time.perf_counter() - start,
            groups=len(analysis.space.groups),
            share=analysis.space.permutable_elements,
            refused=tuple(analysis.unknown),
            unused=len(analysis.unused),
        )
        start = time.perf_counter()
        proof = analysis.space.verify(module, *inputs, output=output, **kwargs)
    except Exception as error:
        return found._replace(why=_words(error))
    return found._replace(
        outcome="verified" if proof else "failed",
        why=", ".join(proof.failed),
        verification=time.perf_counter() - start,
        untested=len(proof.untested),
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def serve(names: Callable[[], Iterable[tuple[str, str]]], build: Build) -> None:
    """The process: with --list it prints the names, else it answers lines until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # models print things, too
    torch.set_num_threads(1)
    if "--list" in sys.argv:
        for family, name in names():
            print(family, name, file=answers)
        return
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        family, name = line.split()
        print(json.dumps(examine(family, name, build)._asdict()), file=answers, flush=True)
    os._exit(0)  # at once: nothing of what the models left behind is of use
