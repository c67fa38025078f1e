"""What people read: who won, in every case; a page that loads nothing; a table; a picture; results.json."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.measures import Spread
from benchmark.outcome import Outcome, Race
from benchmark.plots import draw_race
from benchmark.race import Result
from benchmark.report import Account, html_report
from benchmark.results import as_json, write_json
from benchmark.standings import standings
from benchmark.step_cost import StepCost, StepCosts
from benchmark.table import terminal_table
from benchmark.verdict import comparison, verdict
from benchmark.wording import spread_text

MakeResult = Callable[..., Result]
LOW, MIDDLE, HIGH = (0.1, 0.11, 0.12), (0.2, 0.21, 0.23), (0.3, 0.31, 0.35)
NAN = float("nan")


def outcome_of(*results: Result) -> Outcome:
    races = []
    for result in results:
        costs = {entry.label: StepCost(0.2, 3.25) for entry in result.entries}
        races.append(Race(result, StepCosts(0.1, 1.0, costs)))
    return Outcome("x", tuple(races), results[0].target)


def page(result: Result, learned: str | None = "learned", initial: str | None = None) -> str:
    account = Account(
        "python -m benchmark suite=x", {"torch": "2"}, {"processor": "<P & Q>"}, learned=learned, initial=initial
    )
    return html_report(outcome_of(result), {result.task: b"\x89PNG"}, account)


@pytest.mark.parametrize(
    ("finals", "first", "second"),
    [
        ({"Adam": HIGH, "learned": LOW}, "learned won: its final test loss of 0.1100 ± 0.0058 is the lowest of 2",
         "learned ends 0.210 ± 0.010 lower in test loss than tuned Adam (more than two standard errors), and it "
         "reaches the best mean test loss of tuned Adam, 0.32, after 18 steps, where tuned Adam takes 20."),
        ({"Adam": LOW, "learned": HIGH}, "Adam won: its final test loss of 0.1100 ± 0.0058 is the lowest of 2",
         "learned ends 0.210 ± 0.010 higher in test loss than tuned Adam (more than two standard errors), and it never "
         "reaches the best mean test loss of tuned Adam, 0.11."),
        ({"Adam": (0.1, 0.2, 0.3), "learned": (0.2, 0.1, 0.29)},
         "No clear winner: learned has the lowest final test loss, 0.197 ± 0.055, but its lead of 0.003 ± 0.058 over "
         "Adam is not significant (less than two standard errors).",
         "learned cannot be told from tuned Adam at the end (0.003 ± 0.058 lower in test loss: not significant"),
    ],
)  # fmt: skip
def test_the_page_says_first_who_won(
    make_result: MakeResult, finals: dict[str, tuple[float, ...]], first: str, second: str
) -> None:
    result = make_result(finals)
    sentences = verdict(result, "learned")
    assert sentences[0].startswith(first)
    assert sentences[1].startswith(second)
    text = page(result)
    assert text.index(sentences[0]) < text.index("<img") < text.index("<table")


def test_the_verdict_when_runs_diverged(make_result: MakeResult) -> None:
    result = make_result({"Adam": (NAN, 0.1, 0.1), "learned": HIGH})
    won, against = verdict(result, "learned")
    assert won.startswith("learned won with a final test loss of 0.320")
    assert "Adam did not end with a finite test loss on every seed" in against
    result = make_result({"Adam": (NAN, 0.1, 0.1), "learned": (NAN, NAN, NAN)})
    assert verdict(result)[0].startswith("Nobody won")


def test_meta_trained_against_before(make_result: MakeResult) -> None:
    result = make_result({"Adam": LOW, "after": MIDDLE, "before": HIGH, "broken": (NAN, 1, 1)})
    assert comparison(result, "after", "before").endswith(
        "lower in test loss than before: more than two standard errors."
    )
    assert "higher" in comparison(result, "before", "after")
    assert "not significant" in comparison(result, "after", "after")
    assert "cannot be compared: broken did not end" in comparison(result, "after", "broken")


class Loads(HTMLParser):
    """Collects what a page would load, and what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_escapes(make_result: MakeResult) -> None:
    nasty = "<script>alert('x')</script> & \"co\""
    text = page(make_result({"Adam": LOW, nasty: HIGH}), learned=nasty, initial="Adam")
    parser = Loads()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.loads) == 1
    assert parser.loads[0].startswith("data:image/png;base64,")
    assert text.count("<script") == 1
    assert nasty not in text
    assert "&lt;script&gt;" in text
    assert "&lt;P &amp; Q&gt;" in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_table_says_what_matters(make_result: MakeResult) -> None:
    result = make_result({"Adam": MIDDLE, "[red]learned": (0.1, 0.1, NAN)}, on_edge=True)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(standings(result), {"Adam": StepCost(0.1, 1.25)}, "title", console.width))
    text = console.export_text()
    adam, learned = (next(line for line in text.splitlines() if label in line) for label in ("Adam", "[red]learned"))
    assert "0.1 (tuned, on the edge)" in adam
    assert "1.00 x (3/3)" in adam
    assert "0/3" in adam
    assert "1.2 x" in adam
    assert "not finite" in learned
    assert "1/3" in learned


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (1.23456, 0.0234, "1.235 ± 0.023"),
        (0.5, 0.0, "0.5 ± 0"),
        (123.4, 20.0, "123 ± 20"),
        (1.0, 1e-12, "1 ± 0"),
        (3e9, 2e8, "3e+09 ± 2e+08"),
    ],
)
def test_spread_text(mean: float, error: float, text: str) -> None:
    assert spread_text(Spread(mean, error)) == text


def test_json_holds_no_nan_and_reads_back(make_result: MakeResult, tmp_path: Path) -> None:
    result = make_result({"Adam": MIDDLE, "learned": (0.1, NAN, 0.1)})
    content = as_json(outcome_of(result), config={"steps": 20}, machine={}, learned="learned", initial="Adam")
    write_json(tmp_path / "results.json", content)
    read = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == content
    assert read["contenders"][1]["final_test_loss"] == {"mean": None, "error": None}
    assert read["contenders"][1]["diverged"] == 1
    assert read["meta_training"]["difference"] is None


@pytest.mark.parametrize("finals", [{"Adam": LOW, "$x_1$": (NAN, NAN, NAN)}, {"Adam": (NAN, NAN, NAN)}, {"Adam": LOW}])
def test_the_picture_is_drawn_whatever_happened(
    make_result: MakeResult, tmp_path: Path, finals: dict[str, tuple[float, ...]]
) -> None:
    draw_race(make_result(finals), tmp_path / "curves.png")
    draw_race(make_result(finals), tmp_path / "again.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").read_bytes() == (tmp_path / "again.png").read_bytes()
