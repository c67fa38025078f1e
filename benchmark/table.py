"""The table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from benchmark.race import Failure
from benchmark.standings import Row
from benchmark.step_cost import StepCost
from benchmark.wording import HEADER, cells

NARROW = 120  # columns below which the names of contenders are broken between words, to leave room for figures
NARROW_NAMES = 14


def terminal_table(
    rows: Sequence[Row], costs: Mapping[str, StepCost], title: str, width: int, failures: Sequence[Failure] = ()
) -> Table:
    """One line for each contender, best first. Labels are taken as they are, without markup.

    Args:
        width: of the terminal, in columns; 80 are enough.
    """
    table = Table(title=Text(title), title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0), show_edge=False)
    for index, name in enumerate(HEADER):
        fixed = NARROW_NAMES if index == 0 and width < NARROW else None
        table.add_column(name, justify="left" if index < 2 else "right", width=fixed)
    for row in rows:
        table.add_row(*map(Text, cells(row, costs.get(row.label))))
    for failure in failures:
        table.add_row(Text(failure.label), Text(f"raised {failure.message.partition(':')[0]}"))
    return table


def plain_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> Table:
    """Any other table, the first column at the left."""
    table = Table(title=Text(title), title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0), show_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
