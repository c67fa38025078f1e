"""What a suite is to show: rows {case, metric, value, unit, reference, goal, holds} for results.json and the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmark.race import Result
from benchmark.records import check_record
from benchmark.standings import Row, standings
from lopt.errors import InvalidInput, unknown

ALL = "all"  # as task: the geometric mean over the suite
METRICS: dict[str, tuple[Callable[[Row], float | None], str]] = {
    "factor to the reference's best loss": (lambda row: row.factor, "x steps"),
    "factor to the reference's final loss": (lambda row: row.final_factor, "x steps"),
    "best test loss": (lambda row: row.best.mean, "nats"),
    "final test loss": (lambda row: row.final.mean, "nats"),
    "diverged runs": (lambda row: row.diverged / len(row.seed_factors), "share"),
}


class Goal(NamedTuple):
    """What one figure should be."""

    task: str  # or "all"
    contender: str
    metric: str  # a name in METRICS
    at_least: float | None = None
    at_most: float | None = None
    reference: str = ""  # the number that it is held against, with its source
    than: str | None = None  # a contender: on which share of the tasks the metric is lower than its


def read_goals(nodes: Sequence[Mapping[str, Any]]) -> tuple[Goal, ...]:
    """Goals as a configuration gives them.

    Raises:
        InvalidInput: an unknown or missing key, an unknown metric, or no bound.
    """
    goals = []
    for node in nodes:
        goal = Goal(**check_record("goal", node, Goal._fields, Goal._field_defaults))
        if goal.metric not in METRICS:
            raise unknown("metric of a goal", goal.metric, METRICS)
        if goal.at_least is None and goal.at_most is None:
            raise InvalidInput(f"goal {goal.task}, {goal.metric}: give at_least or at_most.")
        goals.append(goal)
    return tuple(goals)


def goal_rows(goals: Sequence[Goal], results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each goal that the races say something of. A value of None was never reached, and does not hold."""
    rows = {(result.task, row.label): row for result in results for row in standings(result)}
    tasks = [result.task for result in results]
    out = []
    for goal in goals:
        measure, unit = METRICS[goal.metric]
        if goal.task != ALL and goal.task not in tasks:
            continue
        names = tasks if goal.task == ALL else [goal.task]
        found = [rows.get((task, goal.contender)) for task in names]
        values = [None if row is None else measure(row) for row in found]
        metric = goal.metric + (", geometric mean" if goal.task == ALL else "")
        value = _mean(values) if goal.task == ALL else values[0]
        if goal.than is not None:
            others = [rows.get((task, goal.than)) for task in names]
            value = _share_below(values, [None if row is None else measure(row) for row in others])
            metric, unit = f"{goal.metric} below that of {goal.than}", "share of tasks"
        out.append(
            {
                "case": f"{goal.task}: {goal.contender}",
                "metric": metric,
                "value": value,
                "unit": unit,
                "reference": goal.reference,
                "goal": _text(goal),
                "holds": value is not None and _holds(goal, value),
            }
        )
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value) and value > 0]
    return statistics.geometric_mean(known) if known and len(known) == len(values) else None


def _share_below(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float:
    """Who has no value is below nobody, and nobody is below who has none."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.fmean(a is not None and b is not None and a < b for a, b in pairs)


def _holds(goal: Goal, value: float) -> bool:
    above = goal.at_least is None or value >= goal.at_least
    return above and (goal.at_most is None or value <= goal.at_most)


def _text(goal: Goal) -> str:
    parts = [f">= {goal.at_least:g}"] if goal.at_least is not None else []
    return " and ".join(parts + ([f"<= {goal.at_most:g}"] if goal.at_most is not None else []))
