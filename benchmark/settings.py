"""A configuration turned into what a race needs. All that can be wrong with it is said here, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmark.anchors import Anchor, read_anchors
from benchmark.contender_nodes import build_contender, check_node, find_node
from benchmark.contenders import Contender, check_field
from benchmark.goals import Goal, read_goals
from benchmark.quick import shortened
from benchmark.race import MAX_WIDENINGS, Plan, check_fit, check_whole
from benchmark.sources import Configured, Own, Source, build_family
from lopt.errors import InvalidInput, unknown
from meta_train.cli import check_keys
from tasks.arguments import floating_dtype, is_whole, usable_device

SEEDS_APART = 1000  # races with different `seed` share no run below this many seeds
LENGTHS = ("steps", "evaluate_every", "max_widenings", "tuning_seeds")


@dataclass(frozen=True)
class Settings:
    """All that the races of a suite need."""

    suite: str
    tasks: tuple[tuple[Source, Plan], ...]
    contenders: tuple[Contender, ...]
    reference: str
    learned: str | None
    initial: str | None
    device: torch.device
    threads: int | None
    workers: int
    cache: Path | None
    out: Path
    quick: bool
    published: tuple[Anchor, ...]
    goals: tuple[Goal, ...]
    config: dict[str, Any]  # as it was given, without `out`

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.tasks[0][1].seeds


def read(config: DictConfig) -> Settings:
    """Checks a configuration (see configs/benchmark.yaml) and builds the tasks and the contenders that it names.

    Raises:
        InvalidInput: whatever cannot be used, cheapest checks first.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    content: dict[str, Any] = {str(key): value for key, value in plain.items()}
    check_keys(content, "benchmark", ["suite"])
    out, cache = Path(str(content.pop("out"))), content.pop("cache", None)
    check_whole("seed", content["seed"], "0 is the usual one")
    threads, workers = (_count(name, content.get(name)) for name in ("threads", "workers"))
    if not isinstance(quick := content.get("quick") or False, bool):
        raise InvalidInput(f"quick: {quick!r} is neither true nor false.")
    suite = shortened(content["suite"]) if quick else content["suite"]
    chosen = _list("contenders", content.get("contenders")) or _list("contenders", suite["contenders"])
    nodes = [check_node(number, find_node(node)) for number, node in enumerate(chosen, 1)]
    tasks = _tasks(suite, content)
    if len(nodes) < 2:
        raise InvalidInput(f"contenders: {len(nodes)} is no race; give two or more.")
    labels = [node["label"] for node in nodes]
    asked = {role: suite.get(role) for role in ("reference", "learned", "initial")}
    roles = _roles(asked, labels, chosen=bool(content.get("contenders")))
    check_field(labels, **roles)
    with torch.random.fork_rng(devices=[]):  # a rule that no checkpoint holds is drawn, and from the seed alone
        torch.manual_seed(content["seed"])
        contenders = [build_contender(node) for node in nodes]
    device, dtype = _placement(tasks, content)
    contenders = tuple(contender.to(device, dtype) for contender in contenders)
    if len(tasks) == 1:  # of several, a rule may fit some: the cells of the others say why not
        check_fit(tasks[0][0].load(), contenders)
    reference = roles["reference"]
    assert reference is not None
    return Settings(
        suite=suite["name"],
        tasks=tasks,
        contenders=contenders,
        reference=reference,
        learned=roles["learned"],
        initial=roles["initial"],
        device=device,
        threads=threads,
        workers=workers or 1,
        cache=None if cache is None else Path(str(cache)),
        out=out.with_name(f"{out.name}-quick") if quick else out,
        quick=quick,
        published=read_anchors(_list("published", suite.get("published"))),
        goals=read_goals(_list("goals", suite.get("goals"))),
        config=content,
    )


def _count(name: str, value: Any) -> int | None:
    if value is not None and not is_whole(value, least=1):
        raise InvalidInput(f"{name}: {value!r} is not a positive whole number; null leaves it to us.")
    return value


def _list(name: str, value: Any) -> list[Any]:
    """A list, which null leaves empty."""
    if value is not None and not isinstance(value, list):
        raise InvalidInput(f"{name}: {value!r} is no list. Write {name}=[{value}].")
    return value or []


def _roles(asked: Mapping[str, str | None], labels: list[str], chosen: bool) -> dict[str, str | None]:
    """The roles; among contenders that a person chose, who is not there plays none. The reference is else the first."""
    roles = {role: label if label in labels or not chosen else None for role, label in asked.items()}
    return roles | {"reference": roles["reference"] or labels[0]}


def _tasks(suite: Mapping[str, Any], content: Mapping[str, Any]) -> tuple[tuple[Source, Plan], ...]:
    """Every task of the suite that was asked for, and how long it is raced on."""
    seed, count = content["seed"], suite["seeds"]
    if isinstance(count, bool) or not isinstance(count, int) or count > SEEDS_APART:
        raise InvalidInput(f"seeds: {count!r}; give a whole number up to {SEEDS_APART}.")
    seeds = tuple(SEEDS_APART * seed + number for number in range(count))

    def plan(node: Mapping[str, Any]) -> Plan:
        lengths = {name: node.get(name, suite.get(name)) for name in LENGTHS}
        if lengths["max_widenings"] is None:
            lengths["max_widenings"] = MAX_WIDENINGS
        return Plan(seeds=seeds, **lengths)

    if content.get("task"):
        own: Source = Own(content["task"], seed)
        length = plan({})
        own.load()
        return ((own, length),)
    nodes: dict[str, dict[str, Any]] = suite.get("tasks") or {suite["name"]: {"family": suite["family"]}}
    if not isinstance(nodes, Mapping) or not all(
        isinstance(node, Mapping) and "family" in node for node in nodes.values()
    ):
        raise InvalidInput(f"suite.tasks: {nodes!r}; give a family for each name, as {{mine: {{family: ...}}}}.")
    asked = _list("tasks", content.get("tasks")) or list(nodes)
    for name in asked:
        if name not in nodes:
            raise unknown(f"task of the suite {suite['name']}", str(name), nodes)
    found = tuple((Configured(name, nodes[name]["family"], seed), plan(nodes[name])) for name in asked)
    for source, _ in found:
        build_family(source.node)
    if not suite.get("tasks"):  # its name is that of its task
        source, length = found[0]
        return ((Configured(source.load().name, source.node, seed), length),)
    return found


def _placement(tasks: tuple[tuple[Source, Plan], ...], content: Mapping[str, Any]) -> tuple[torch.device, torch.dtype]:
    """Where the weights lie, and their dtype."""
    source = tasks[0][0]
    if isinstance(source, Own) or len(tasks) == 1:
        weight = next(iter(source.load().init(torch.Generator().manual_seed(0)).values()))
        return weight.device, weight.dtype
    return usable_device(content["device"]), floating_dtype(content["dtype"])
