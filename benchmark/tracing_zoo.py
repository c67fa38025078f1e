"""Many models that other people wrote, each traced and verified; in processes with a time limit for each model.

How the parts fit: tracing_transformers.py and tracing_timm.py build the models, tracing_worker.py examines them in a
process of its own, and `Keeper` here keeps that process going: it is begun anew after some models, since they leave
memory behind, and after one that takes too long.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from benchmark.tracing_worker import READY, Finding

SOURCES = {"transformers": "benchmark.tracing_transformers", "timm": "benchmark.tracing_timm"}
GOALS = {"transformers": (150, 100), "timm": (150, 80)}  # models, and types or families
LIMIT, START = 120.0, 300.0  # seconds for a model, and for the imports
PER_PROCESS = 50  # models

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


class Keeper:
    """A process that examines models, begun anew when it has to be."""

    def __init__(self, command: Sequence[str], limit: float = LIMIT, start: float = START) -> None:
        self.command, self.limit, self.start = command, limit, start
        self.process: subprocess.Popen[bytes] | None = None
        self.done = 0

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def examine(self, family: str, name: str) -> Finding:
        """What the process says of a model; an outcome of its own if it says nothing."""
        if self.done == PER_PROCESS:
            self._end()
        if self.process is None:
            self._begin()
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(f"{family} {name}\n".encode())
        self.process.stdin.flush()
        self.done += 1
        answer = self._answer(self.limit)
        if answer:
            return Finding(**json.loads(answer))
        slow = answer is None
        self._end()
        return Finding(family, name, "too slow" if slow else "raised", "" if slow else "the process ended")

    def _begin(self) -> None:
        pipe = subprocess.PIPE
        environment = {**os.environ, **_ENVIRONMENT}
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
        )
        self.done = 0
        if self._answer(self.start) != READY.encode():
            self._end()
            raise RuntimeError(f"{' '.join(self.command)} does not start; is its package installed?")

    def _answer(self, limit: float) -> bytes | None:
        """A line; empty if the process ended, None if it took too long."""
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            return None
        return self.process.stdout.readline().strip()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def names(source: str) -> list[tuple[str, str]]:
    """(family, name) of every model that a source can try to build."""
    environment = {**os.environ, **_ENVIRONMENT}
    command = [sys.executable, "-m", SOURCES[source], "--list"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [(family, name) for family, name in map(str.split, done.stdout.splitlines())]


def findings(source: str, wanted: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """What becomes of each model, one after the other."""
    with Keeper([sys.executable, "-m", SOURCES[source]]) as keeper:
        for family, name in wanted:
            yield keeper.examine(family, name)


# --- what is printed -------------------------------------------------------------------------------------------------

HEADER = f"{'type':27} {'model':38} {'parameters':>11} {'groups':>6} {'share':>6} {'trace':>7} {'verify':>7}  outcome"


def line(found: Finding) -> str:
    """A model as one line of the table."""
    seconds = [f"{s:.2f} s" if s is not None else "-" for s in (found.tracing, found.verification)]
    refused = Counter(reason.split()[0].rstrip(",") for reason in found.refused)
    remarks = [f"{found.outcome}{': ' * bool(found.why)}{found.why}"]
    remarks += [f"no rule: {', '.join(refused)}"] if refused else []
    remarks += [f"{count} {what}" for count, what in ((found.unused, "unused"), (found.untested, "untested")) if count]
    return (
        f"{found.family[:27]:27} {found.name[:38]:38} {found.parameters:11,} {found.groups:6} {found.share:6.1%} "
        f"{seconds[0]:>7} {seconds[1]:>7}  {'; '.join(remarks)}"
    )


def totals(source: str, found: Sequence[Finding]) -> list[str]:
    """The sums over a source, and why models were skipped."""
    built = [one for one in found if one.outcome != "skipped"]
    traced = [one for one in built if one.tracing is not None]
    verified = [one for one in built if one.outcome == "verified"]
    families = {one.family for one in verified}
    models, kinds = GOALS[source]
    outcomes = Counter(one.outcome for one in built)
    lines = [
        f"{source}: {len(built)} models of {len({one.family for one in built})} types built, {len(traced)} traced, "
        f"{len(verified)} of {len(families)} types verified (goal: {models} of {kinds}); "
        + ", ".join(f"{outcomes[name]} {name}" for name in ("failed", "raised", "too slow"))
    ]
    if traced:
        times = [one.tracing for one in traced if one.tracing is not None]
        refused = sum(bool(one.refused) for one in traced)
        lines.append(
            f"  median of tracing {statistics.median(times):.3f} s, longest {max(times):.2f} s; median share "
            f"{statistics.median(one.share for one in traced):.1%}; {refused} with operators that have no rule"
        )
    reasons = Counter(one.why.split(":")[0] for one in found if one.outcome == "skipped")
    if reasons:
        counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        lines.append(
            f"  {sum(reasons.values())} skipped, for they do not build or run as they are made here: {counted}"
        )
    return lines
