"""The page by its HTML, and in a browser where there is one: tables, sorting, figures, commands, dark mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmark.anchors import anchor_rows, read_anchors
from benchmark.goals import goal_rows, read_goals
from benchmark.outcome import Outcome, Race
from benchmark.page import SCRIPT, STYLE, Cell, figure, page, table
from benchmark.race import Failure, Result
from benchmark.report import Account, html_report
from benchmark.step_cost import StepCost, StepCosts
from benchmark.suite_plots import draw_gains, draw_profiles
from benchmark.wording import summary_cells
from lopt.errors import InvalidInput

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FACTOR = "factor to the reference's best loss"
MakeResult = Callable[..., Result]


def rows_of(html: str) -> list[list[str]]:
    """The texts of the body of every table, row by row."""

    reader = Cells()
    reader.feed(html)
    return reader.rows


class Cells(HTMLParser):
    """Collects the cells of all tables."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def in_browser(html: str, folder: Path) -> str | None:
    """The page's DOM after its scripts ran; None where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return None
    (folder / "page.html").write_text(html, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
               "--dump-dom", (folder / "page.html").as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def suite(results: Sequence[Result]) -> Outcome:
    races = []
    for result in results:
        costs = {entry.label: StepCost(0.2, 2.0 + index) for index, entry in enumerate(result.entries)}
        races.append(Race(result, StepCosts(0.1, 1.0, costs)))
    return Outcome("x", tuple(races), results[0].target)


@pytest.fixture
def two_tasks(make_result: MakeResult) -> Outcome:
    first = replace(make_result({"Adam": (0.3, 0.31, 0.35), "ours": (0.1, 0.11, 0.12)}), task="easy")
    second = make_result({"Adam": (0.1, 0.11, 0.12), "ours": (0.3, 0.31, 0.35), "broken": (1, 1, 1)})
    broken = Failure(second["broken"].contender, "RuntimeError: <it> broke", "")
    second = replace(second, task="hard", entries=second.entries[:2], failures=(broken,))
    return suite([first, second])


def report_of(outcome: Outcome, note: str | None = None) -> str:
    goals = read_goals([{"task": "easy", "contender": "ours", "metric": FACTOR, "at_least": 1, "reference": "none"}])
    anchors = read_anchors(
        [{"task": "easy", "metric": "best test loss", "contender": "Adam", "value": 0.3, "error": 0.1, "source": "us"}]
    )
    account = Account(
        "python -m benchmark suite=x",
        {"torch": "2"},
        {"processor": "P"},
        learned="ours",
        note=note,
        goals=goal_rows(goals, [race.result for race in outcome.races]),
        anchors=anchor_rows(anchors, outcome),
        task_commands={"easy": "python -m benchmark suite=x tasks=[easy]"},
    )
    return html_report(outcome, dict.fromkeys(("easy", "hard", "profiles", "gains"), b"\x89PNG"), account)


def test_the_page_of_a_suite_holds_what_was_measured(two_tasks: Outcome) -> None:
    html = report_of(two_tasks, note="quick: no result")
    rows = {row[0]: row[1:] for row in rows_of(html) if row}
    matrix = rows_of(html)[:3]
    assert matrix[0] == ["task", "Adam", "ours", "broken"]
    assert matrix[1] == ["easy", "1.00 x", "1.13 x", ""]
    assert matrix[2] == ["hard", "1.00 x", "never", "raised"]
    assert next(row for row in rows_of(html) if row[0] == "ours")[1] == "1.13 x on 1/2"
    assert "raised RuntimeError: &lt;it&gt; broke" in html
    assert rows["easy: ours"][-1] == "yes"
    assert rows["easy"][1] == "0.3 ± 0.1 (us)"
    assert rows["easy"][2].startswith("0.32")
    assert html.index("quick: no result") < html.index("<table")
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)
    assert len(figures) == 4
    assert all(re.search(r"<figcaption><code>python -m benchmark suite=x.*</code>", each) for each in figures)
    assert "tasks=[easy]" in html
    for needed in ('name="viewport"', "prefers-color-scheme: dark", "max-width: 40rem"):
        assert needed in html


def test_tables_are_there_and_sort(two_tasks: Outcome, tmp_path: Path) -> None:
    """With a browser the script must sort by number, words last, and back; without one the HTML must offer it."""
    cells = [[name, Cell(text, value)] for name, text, value in
             (("b", "10 x", 10.0), ("a", "9 x", 9.0), ("d", "never", 0.0), ("c", "at once", float("inf")))]  # fmt: skip
    html = page("t", "h", table(["name", "factor"], cells) + figure(b"", "alt", "command"))
    assert html.count("<table>") == 1
    assert 'data-value="10.0"' in html
    assert SCRIPT in html
    press = """<pre></pre><script>
    for (const column of [0, 0, 1, 1]) {
      const head = document.querySelectorAll("thead th")[column];
      head.querySelector("button").click();
      const order = [...document.querySelectorAll("tbody th")].map(cell => cell.textContent).join("");
      document.querySelector("pre").append(`${order} ${head.getAttribute("aria-sort")};`);
    }
    </script>"""
    dom = in_browser(html.replace("</body>", press + "</body>"), tmp_path)
    if dom is not None:
        told = re.findall(r"<pre>(.*?)</pre>", dom)
        assert told == ["abcd ascending;dcba descending;dabc ascending;cbad descending;"]


def test_a_browser_shows_every_table_of_a_report(two_tasks: Outcome, tmp_path: Path) -> None:
    html = report_of(two_tasks)
    dom = in_browser(html, tmp_path)
    for shown in (html, dom or html):
        assert shown.count("</table>") == 6
    if dom is not None:
        assert dom.count("<button") == html.count('scope="col"')  # the script reached every table


def test_cards_are_readable(two_tasks: Outcome) -> None:
    """A configuration stands line by line, folded as what is long is; every entry is there."""
    card = {"meta_steps": 3, "config": {"rule": {"_target_": "${x.<Y>"}}, "how": "long " * 200}
    race = two_tasks.races[0]
    first, *others = race.result.entries
    first = replace(first, contender=replace(first.contender, card=card))
    race = replace(race, result=replace(race.result, entries=(first, *others)))
    html = report_of(replace(two_tasks, races=(race, *two_tasks.races[1:])))
    assert "<dt>meta_steps</dt><dd>3</dd>" in html
    folded = re.findall(r"<dt>(\w+)</dt><dd><details>.*?<pre>(.*?)</pre>", html, flags=re.DOTALL)
    assert [name for name, _ in folded] == ["config", "how"]
    lines = [line.strip() for line in folded[0][1].splitlines()]
    assert lines == ["{", "&quot;rule&quot;: {", "&quot;_target_&quot;: &quot;${x.&lt;Y&gt;&quot;", "}", "}"]


def test_the_style_closes_what_it_opens() -> None:
    assert STYLE.count("{") == STYLE.count("}")
    assert SCRIPT.count("{") == SCRIPT.count("}")


def test_the_pictures_of_a_suite(two_tasks: Outcome, make_result: MakeResult, tmp_path: Path) -> None:
    nobody = make_result({"Adam": (float("nan"),) * 3, "$x_1$": (float("nan"),) * 3})
    for number, outcome in enumerate((two_tasks, suite([nobody, replace(nobody, task="other")]))):
        for draw in (draw_profiles, draw_gains):
            path = tmp_path / f"{draw.__name__}{number}.png"
            draw(outcome, path)
            assert path.read_bytes().startswith(b"\x89PNG")


def test_summaries(two_tasks: Outcome) -> None:
    summaries = {summary.label: summary for summary in two_tasks.summaries}
    adam, ours, broken = (summaries[label] for label in ("Adam", "ours", "broken"))
    assert adam.factor == pytest.approx(1)
    assert (ours.factor, ours.faster, ours.slower) == (None, 1, 1)  # on one task it never reaches the target
    assert (ours.reached, ours.tasks) == (1, 2)
    assert ours.factor_where_reached == pytest.approx(1.13, abs=0.01)
    assert adam.factor_where_reached == adam.factor
    assert (broken.tasks, broken.raised, broken.factor) == (0, 1, None)
    assert [summary_cells(summaries[label])[1] for label in ("Adam", "ours", "broken")] == [
        "1.00 x",
        "1.13 x on 1/2",
        "no target",
    ]
    assert adam.score > ours.score > broken.score
    assert not two_tasks.flawless


@pytest.mark.parametrize(
    ("bounds", "value", "holds"),
    [({"at_least": 1.1}, 1.13, True), ({"at_least": 1.2}, 1.13, False), ({"at_most": 1.2, "at_least": 1}, 1.13, True)],
)
def test_goals(two_tasks: Outcome, bounds: dict[str, float], value: float, holds: bool) -> None:
    results = [race.result for race in two_tasks.races]
    cases = (("easy", bounds), ("another", {"at_least": 1}), ("all", {"at_least": 0.1}))
    goals = [{"task": task, "contender": "ours", "metric": FACTOR, **some} for task, some in cases]
    first, everywhere = goal_rows(read_goals(goals), results)
    assert set(first) == {"case", "metric", "value", "unit", "reference", "goal", "holds"}
    assert first["value"] == pytest.approx(value, abs=0.01)
    assert first["holds"] is holds
    assert (everywhere["value"], everywhere["holds"]) == (None, False)  # never on one task is never on all


def test_a_goal_against_another_contender(two_tasks: Outcome) -> None:
    """Ours ends below Adam on the easy task alone; who raised is below nobody, and nobody is below who raised."""
    results = [race.result for race in two_tasks.races]
    cases = [("easy", "Adam"), ("hard", "Adam"), ("all", "Adam"), ("all", "broken")]
    goals = [
        {"task": task, "contender": "ours", "metric": "final test loss", "than": than, "at_least": 0.4}
        for task, than in cases
    ]
    rows = goal_rows(read_goals(goals), results)
    assert [(row["value"], row["holds"]) for row in rows] == [(1, True), (0, False), (0.5, True), (0, False)]
    assert (rows[0]["metric"], rows[0]["unit"]) == ("final test loss below that of Adam", "share of tasks")


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"metric": "factr"}, "unknown metric"),
        ({"metric": FACTOR, "bound": 1}, "unknown key of a goal"),
        ({"metric": FACTOR}, "at_least or at_most"),
    ],
)
def test_bad_goals(goal: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_goals([{"task": "all", "contender": "a", **goal}])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "3 is no mapping. Give task"),
        ({}, "lacks task"),
        ({"task": "all", "metric": FACTOR}, "lacks (contender|value, source)"),
    ],
)
def test_entries_that_are_no_records(entry: Any, message: str) -> None:
    for read, what in ((read_goals, "goal"), (read_anchors, "published number")):
        with pytest.raises(InvalidInput, match=f"^{what}: .*{message}"):
            read([entry])
