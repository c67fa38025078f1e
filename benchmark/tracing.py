"""python -m benchmark.tracing: how long the derivation of a network's symmetry takes, and on which models it works.

Without a command, times: a dozen networks, ResNet-50, GPT-2 small, and Llama-7B from its configuration. `zoo` derives
and verifies the symmetry of some hundred models of `transformers` and `timm`, with tiny random configurations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console

from benchmark import tracing_zoo
from benchmark.layers import table
from benchmark.results import hardware, versions
from benchmark.tracing_cases import large, small
from benchmark.tracing_worker import Finding


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the rows where --json says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.tracing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    zoo_parser = parser.add_subparsers(dest="command").add_parser("zoo", help="trace and verify other people's models")
    zoo_parser.add_argument("--only", choices=tracing_zoo.SOURCES, help="the models of one package")
    zoo_parser.add_argument("--match", default="", metavar="TEXT", help="models whose type or name contains this")
    zoo_parser.add_argument("--limit", type=int, metavar="N", help="at most so many models of each package")
    zoo_parser.add_argument("--json", type=Path, default=argparse.SUPPRESS, help="where to write the rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.command == "zoo":
        if options.limit is not None and options.limit < 1:
            parser.error(f"--limit: {options.limit}; at least one model is needed")
        sources = [options.only] if options.only else list(tracing_zoo.SOURCES)
        return zoo(sources, options.match, options.limit, options.json)
    return times(options.json)


def times(path: Path | None) -> int:
    """The table of times, with the goals that hold and those that do not."""
    rows = [*small(), *large()]
    if path is not None:
        path.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table({"value": rows}))
    console.print(_about())
    return 0


def zoo(sources: Sequence[str], match: str, limit: int | None, path: Path | None) -> int:
    """A line for each model, and the sums. 1 if a trace raised or took too long, or a group did not hold."""
    found: dict[str, list[Finding]] = {source: [] for source in sources}
    print(tracing_zoo.HEADER)
    for source in sources:
        names = [(family, name) for family, name in tracing_zoo.names(source) if match in f"{family} {name}"]
        for finding in tracing_zoo.findings(source, names[:limit]):
            found[source].append(finding)
            print(tracing_zoo.line(finding), flush=True)
            if path is not None:  # as they come: a long run may be stopped
                rows = [{"source": name, **one._asdict()} for name, several in found.items() for one in several]
                path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for source in sources:
        print("\n".join(["", *tracing_zoo.totals(source, found[source])]))
    print(_about())
    return int(any(one.outcome not in ("verified", "skipped") for several in found.values() for one in several))


def _about() -> str:
    packages = {name: metadata.version(name) for name in ("transformers", "timm")}
    machine = hardware(torch.device("cpu"))
    return ", ".join(f"{key} {value}" for key, value in {**machine, **versions(), **packages}.items())


if __name__ == "__main__":
    sys.exit(main())
