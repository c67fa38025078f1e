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
    content = {
        "task": source.key,
        "contenders": [(each.label, each.kind, dict(each.arguments), stamp_of(each)) for each in contenders],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    text = json.dumps(content, sort_keys=True, default=str)
    folder = None if source.key is None else cache.folder
    path = None if folder is None else folder / f"times-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if path is not None and path.is_file():
        adam, gradient, by_label = json.loads(path.read_text(encoding="utf-8"))
        return StepCosts(adam, gradient, {label: StepCost(*cost) for label, cost in by_label.items()})
    costs = step_costs(source.load(), contenders)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(costs), encoding="utf-8")
    return costs
