"""Published numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmark.goals import METRICS
from benchmark.outcome import Outcome
from benchmark.records import check_record
from benchmark.standings import Row
from benchmark.wording import spread_text
from lopt.errors import unknown

HEADER = ("task", "measure", "published", "measured here")


class Anchor(NamedTuple):
    """One published number. Without a contender it is printed alone: the optimizer that it belongs to is not ours."""

    task: str
    metric: str  # a name in METRICS
    value: float
    source: str
    contender: str | None = None
    error: float | None = None
    of: str = ""  # whose number it is


def read_anchors(nodes: Sequence[Mapping[str, Any]]) -> tuple[Anchor, ...]:
    """Anchors as a configuration gives them.

    Raises:
        InvalidInput: an unknown or missing key, or an unknown metric.
    """
    records = [check_record("published number", node, Anchor._fields, Anchor._field_defaults) for node in nodes]
    anchors = tuple(Anchor(**record) for record in records)
    for anchor in anchors:
        if anchor.metric not in METRICS:
            raise unknown("metric of a published number", str(anchor.metric), METRICS)
    return anchors


def anchor_rows(anchors: Sequence[Anchor], outcome: Outcome) -> list[tuple[str, ...]]:
    """Cells under `HEADER`, for the tasks that were raced."""
    races = {race.result.task: race for race in outcome.races}
    return [
        (
            anchor.task,
            f"{anchor.metric} of {anchor.contender or anchor.of}",
            f"{_published(anchor)} ({anchor.source})",
            _measured(anchor, races[anchor.task].row(anchor.contender) if anchor.contender else None),
        )
        for anchor in anchors
        if anchor.task in races
    ]


def _published(anchor: Anchor) -> str:
    return f"{anchor.value:g}" if anchor.error is None else f"{anchor.value:g} ± {anchor.error:g}"


def _measured(anchor: Anchor, row: Row | None) -> str:
    if row is None:
        return ""
    if anchor.metric == "best test loss":
        return spread_text(row.best)
    if anchor.metric == "final test loss":
        return spread_text(row.final)
    value = METRICS[anchor.metric][0](row)
    return "never" if value is None else f"{value:.3g}"
