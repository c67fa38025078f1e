"""How figures are written, in the terminal's table and in the report alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmark.measures import Spread
from benchmark.outcome import Summary
from benchmark.standings import Row
from benchmark.step_cost import StepCost

HEADER = (
    "contender",
    "learning rate",
    "final test loss",
    "best test loss",
    "speed",
    "diverged",
    "time",
)


def loss_text(loss: float) -> str:
    """A loss to four significant digits."""
    return "not finite" if not math.isfinite(loss) else f"{loss:.4g}"


def lr_text(lr: float) -> str:
    """A learning rate to three significant digits.

    >>> lr_text(0.00316228), lr_text(0.000031)
    ('0.00316', '3.1e-05')
    """
    return f"{lr:.3g}"


def setting_text(setting: Mapping[str, Any]) -> str:
    """The learning rate, and whatever else was set.

    >>> setting_text({"lr": 0.01, "weight_decay": 0.1})
    'learning rate 0.01, weight_decay 0.1'
    """
    others = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in setting.items()
              if name != "lr"]  # fmt: skip
    return ", ".join([f"learning rate {lr_text(setting['lr'])}", *others])


def spread_text(spread: Spread) -> str:
    """Mean ± standard error, both to the place of the error's second digit.

    >>> spread_text(Spread(0.123456, 0.00234)), spread_text(Spread(math.inf, math.nan))
    ('0.1235 ± 0.0023', 'not finite')
    """
    if not math.isfinite(spread.mean):
        return "not finite"
    if spread.error <= 1e-7 * abs(spread.mean):  # of the size of rounding
        return f"{spread.mean:.4g} ± 0"
    places = 1 - math.floor(math.log10(spread.error))
    if places > 6 or abs(spread.mean) >= 1e6:
        return f"{spread.mean:.3g} ± {spread.error:.2g}"
    return f"{spread.mean:.{max(places, 0)}f} ± {spread.error:.{max(places, 0)}f}"


def factor_text(factor: float | None) -> str:
    """A factor in steps."""
    if factor is None:
        return "never"
    return "at once" if math.isinf(factor) else f"{factor:.2f} x"


def cells(row: Row, cost: StepCost | None) -> tuple[str, ...]:
    """One row of the table, under `HEADER`."""
    seeds = len(row.seed_factors)
    rate = f"{lr_text(row.entry.tuning.lr)} ({row.lr_kind}{', on the edge' if row.entry.tuning.on_edge else ''})"
    return (
        row.label,
        rate,
        spread_text(row.final),
        spread_text(row.best),
        f"{speed_text(row)} ({row.reached}/{seeds})",
        f"{row.diverged}/{seeds}",
        "" if cost is None else f"{cost.ratio:.1f} x",
    )


def speed_text(row: Row) -> str:
    """The factor to the reference's best loss, and whether it can be told from 1."""
    if row.speed is None:
        return "no target"
    doubtful = row.interval is not None and row.factor not in (None, 1.0) and not row.significant
    return factor_text(row.factor) + (" n.s." if doubtful else "")


SUMMARY_HEADER = (
    "contender",
    "to the best loss",
    "to the final loss",
    "on the clock",
    "faster",
    "slower",
    "diverged runs",
    "raised",
    "score",
)


def summary_cells(summary: Summary) -> tuple[str, ...]:
    """One contender over a suite, under `SUMMARY_HEADER`."""
    factors = (
        _mean_text(summary, summary.factor, summary.factor_where_reached),
        factor_text(summary.final_factor),
        _mean_text(summary, summary.clock, summary.clock_where_reached),
    )
    diverged = "" if math.isnan(summary.diverged) else f"{100 * summary.diverged:.0f} %"
    counts = (f"{summary.faster}/{summary.tasks}", f"{summary.slower}/{summary.tasks}", diverged, str(summary.raised))
    return (summary.label, *factors, *counts, f"{summary.score:.2f}")


def _mean_text(summary: Summary, everywhere: float | None, where_reached: float | None) -> str:
    """A mean over tasks; over some of them where the target was not reached on the others."""
    if not summary.targets:
        return "no target"
    if everywhere is not None or where_reached is None:
        return factor_text(everywhere)
    return f"{factor_text(where_reached)} on {summary.reached}/{summary.targets}"


MORE = ("95 % interval", "to the final loss", "on the clock", "mean loss of the run")


def more_cells(row: Row, clock: float | None) -> tuple[str, ...]:
    """What a page has room for besides, under `MORE`.

    Args:
        clock: the factor to the reference's best loss in time.
    """
    interval = "" if row.interval is None else f"{_bound(row.interval.low)} to {_bound(row.interval.high)}"
    final = "" if row.final_factor is None else factor_text(row.final_factor)
    return interval, final, "" if clock is None else factor_text(clock), spread_text(row.area)


def _bound(factor: float) -> str:
    return "never" if factor == 0 else factor_text(factor).removesuffix(" x")


def legend(reference: str) -> str:
    """What the columns mean."""
    return (
        "Losses are mean ± standard error over seeds; best: the lowest of each seed. Speed: steps that "
        f"{reference} takes to the lowest point of its mean curve over steps taken to reach that loss, on mean curves; "
        "above 1 is faster (in how many seeds the best loss of its run with that seed is reached); n.s.: not "
        "significant, 1 lies within the 95 % bootstrap interval over seeds. "
        "Time: of one step, in steps of torch.optim.Adam(foreach=True)."
    )


def more_legend(reference: str) -> str:
    """What the further columns of a page mean."""
    return (
        "95 % interval: of the speed, by a paired bootstrap over seeds. To the final loss: the steps that "
        f"{reference} takes to its final loss over ours, on mean curves that are smoothed and made monotone; where it "
        "is not reached, the steps that the reference takes to our final loss over the length of the run. On the "
        "clock: the speed, in time instead of steps, from the time of a gradient and a step. Mean loss of the run: the "
        "area under the test curve over its length."
    )
