"""A small version of any suite, to see it work from end to end; its figures mean nothing and say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS, EVALUATE_EVERY, SEEDS = 40, 8, 2
NOTE = (
    f"quick: {STEPS} steps and {SEEDS} seeds, grids not widened. This shows that it runs; no figure here is a result."
)


def shortened(suite: Mapping[str, Any]) -> dict[str, Any]:
    """A suite with few steps and seeds; goals and published numbers, which short runs cannot meet, are left out."""
    lengths = {"steps": STEPS, "evaluate_every": EVALUATE_EVERY, "tuning_seeds": 1}
    once = {"seeds": SEEDS, "max_widenings": 0, "goals": [], "published": []}
    tasks = {name: {**task, **lengths} for name, task in (suite.get("tasks") or {}).items()}
    return {**suite, **lengths, **once, "tasks": tasks or None}
