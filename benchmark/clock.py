"""Times of steps, kept between runs of a benchmark, so that a second run is instant."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

import torch

from benchmark.cache import Cache, stamp_of
from benchmark.contenders import Contender
from benchmark.sources import Source
from benchmark.step_cost import StepCost, StepCosts, step_costs


def cached_costs(source: Source, contenders: Sequence[Contender], cache: Cache) -> StepCosts:
    """`step_costs` of a task, as they were measured before on as many cores with the same versions, or now."""
    if cache.folder is None or source.key is None:
        return step_costs(source.load(), contenders)
    content = {
        "task": (source.key, source.content),
        "contenders": [(each.label, each.kind, dict(each.arguments), stamp_of(each)) for each in contenders],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    text = json.dumps(content, sort_keys=True, default=str)
    name = f"times-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    costs = cache.read(name, f"times of {source.label}", _parse)
    if costs is None:
        costs = step_costs(source.load(), contenders)
        cache.write(name, json.dumps(costs).encode())
    return costs


def _parse(content: bytes) -> StepCosts:
    adam, gradient, by_label = json.loads(content)
    return StepCosts(adam, gradient, {label: StepCost(*cost) for label, cost in by_label.items()})
