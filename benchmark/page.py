"""The pieces of a self-contained page: its style, the script that sorts its tables, figures, tables, lists.

The page loads nothing. Without the script it shows the same; with it, a click on a column's head sorts by it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #5c5c5c; --back: #fbfbf9; --card: #ffffff; --line: #d9d9d4 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e9e9e6; --quiet: #a5a5a0; --back: #17181a; --card: #202224; --line: #3a3c3f }
}
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
       font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--quiet); margin: 0 0 .8rem }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem }
.verdict { font-size: 1.3rem; line-height: 1.45; margin: 0 0 1rem; max-width: 46rem }
.verdict + .verdict { font-size: 1.05rem }
.warning { border-left: .25rem solid #D55E00; padding: .2rem .8rem; margin: 0 0 1rem }
figure { margin: .8rem 0 1.4rem }
.picture { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; overflow-x: auto }
.picture img { display: block; width: 100%; min-width: 34rem; height: auto }
figcaption { color: var(--quiet); font-size: .85rem; margin-top: .4rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .45rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line) }
thead th { border-top: 0; color: var(--quiet); font-weight: 600; white-space: normal; vertical-align: bottom }
th:first-child, .words td, .words th { text-align: left }
th:first-child { position: sticky; left: 0; background: var(--card) }
.words td { white-space: normal; min-width: 4.5rem }
thead button { all: unset; cursor: pointer; font: inherit; color: inherit }
thead button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
tbody th { font-weight: 600; white-space: normal; min-width: 8rem }
tbody th small { display: block; font-weight: 400; color: var(--quiet) }
.note { color: var(--quiet); font-size: .9rem; margin: .7rem 0 }
ul { padding-left: 1.2rem; margin: .5rem 0 }
dt { font-weight: 600; margin-top: .6rem } dd { margin: 0 }
code, pre { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
pre { white-space: pre-wrap; margin: .3rem 0 } summary { cursor: pointer; color: var(--quiet) }
@media (max-width: 40rem) {
  .verdict { font-size: 1.1rem } th, td { padding: .4rem .5rem } tbody th { min-width: 7rem }
}
"""

# Every head becomes a button. Cells are compared as the numbers that they begin with (data-value); words come last.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = row => {
        const cell = row.cells[column], number = parseFloat(cell.dataset.value ?? cell.textContent);
        return Number.isNaN(number) ? cell.textContent.trim() : number;
      };
      const order = (a, b) => typeof a === typeof b
        ? (typeof a === "number" ? a - b : a.localeCompare(b)) * (up ? 1 : -1)
        : (typeof a === "number" ? -1 : 1);
      body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
    });
  });
}
"""


class Cell(NamedTuple):
    """A cell of a table: what it shows, what it sorts by if that is not the same, a small line beneath."""

    text: str
    value: float | None = None
    small: str = ""


def page(title: str, heading: str, content: str) -> str:
    """A whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(heading)}</h1>
{content}
<script>{SCRIPT}</script>
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[Cell | str]], words: bool = False) -> str:
    """A table whose first column names the rows.

    Args:
        words: whether it holds words rather than figures, which stand at the left.
    """
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "\n".join(_line([cell if isinstance(cell, Cell) else Cell(cell) for cell in row]) for row in rows)
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll"><table{kind}>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )


def _line(row: Sequence[Cell]) -> str:
    first, *others = row
    small = f"<small>{escape(first.small)}</small>" if first.small else ""
    cells = "".join(_cell(cell) for cell in others)
    return f'<tr><th scope="row">{escape(first.text)}{small}</th>{cells}</tr>'


def _cell(cell: Cell) -> str:
    number = "Infinity" if cell.value == math.inf else repr(cell.value)  # as JavaScript calls it
    value = "" if cell.value is None else f' data-value="{number}"'
    return f"<td{value}>{escape(cell.text)}</td>"


def figure(picture: bytes, alt: str, command: str) -> str:
    """A PNG inside the page, and beneath it the command that makes it."""
    data = base64.b64encode(picture).decode()
    image = f'<div class="picture"><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
    return f"<figure>{image}\n<figcaption><code>{escape(command)}</code></figcaption></figure>"


def items(lines: Iterable[str]) -> str:
    """A list."""
    return "<ul>\n" + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>"


def definition(name: str, content: str) -> str:
    """A term and what there is to say of it, for a list of definitions."""
    return f"<dt>{escape(name)}</dt><dd>{escape(content)}</dd>\n"


def folded(name: str, content: str) -> str:
    """The same for what is long: a click shows it."""
    return f"<dt>{escape(name)}</dt><dd><details><summary>show</summary><pre>{escape(content)}</pre></details></dd>\n"
