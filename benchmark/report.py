"""report.html: one self-contained page that says first who won, and then how that is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from benchmark.anchors import HEADER as ANCHOR_HEADER
from benchmark.contenders import Contender
from benchmark.outcome import Outcome, Race
from benchmark.page import Cell, definition, figure, folded, items, page, table
from benchmark.race import Entry, Failure, Result
from benchmark.standings import Row
from benchmark.verdict import comparison, summary_sentences, verdict
from benchmark.wording import (
    HEADER,
    MORE,
    SUMMARY_HEADER,
    cells,
    legend,
    lr_text,
    more_cells,
    more_legend,
    setting_text,
    speed_text,
    summary_cells,
)

_PARTLY = 1e-6  # what a mean over some tasks is sorted by is this times it: below every mean over all
LONGEST_LINE = 600  # characters of a card's entry above which it is folded


@dataclass(frozen=True)
class Account:
    """What a page says besides the races themselves."""

    command: str  # of the whole suite
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]
    commit: str | None = None
    learned: str | None = None
    initial: str | None = None
    note: str | None = None  # a warning that stands first
    goals: Sequence[Mapping[str, Any]] = ()
    anchors: Sequence[tuple[str, ...]] = ()
    task_commands: Mapping[str, str] = field(default_factory=dict)  # by task; of the whole suite where there is none


def html_report(outcome: Outcome, pictures: Mapping[str, bytes], account: Account) -> str:
    """The page.

    Args:
        pictures: PNGs: the curves under the name of each task; "profiles" and "gains" of a suite.
    """
    first = outcome.races[0].result
    several = len(outcome.races) > 1
    title = f"Suite {outcome.suite}" if several else f"Race on {first.task}"
    lengths = sorted({race.result.steps[-1] for race in outcome.races})
    steps = f"{lengths[0]} steps" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} steps"
    tasks = f"{len(outcome.races)} tasks, " if several else ""
    heading = f"{title}: {tasks}{len(outcome.labels)} contenders, {len(first.seeds)} seeds, {steps}"
    parts = [f'<p class="warning">{escape(account.note)}</p>'] if account.note else []
    parts += _suite(outcome, pictures, account) if several else []
    for race in outcome.races:
        parts += _race(race, pictures, account, several)
    parts += ["<h2>How the races were run</h2>" if several else "<h2>How the race was run</h2>", _rules(outcome)]
    parts += _cards(outcome)
    parts += ["<h2>To run it again</h2>", f"<p><code>{escape(account.command)}</code></p>"]
    made = {**account.versions} | ({"commit": account.commit} if account.commit else {})
    parts.append(
        f"<dl>\n{definition('versions', _listed(made))}{definition('hardware', _listed(account.machine))}</dl>"
    )
    return page(title, heading, "\n".join(parts))


def _suite(outcome: Outcome, pictures: Mapping[str, bytes], account: Account) -> list[str]:
    """What there is to say of all tasks together."""
    sentences = summary_sentences(outcome, account.learned)
    parts = [f'<p class="verdict">{escape(sentence)}</p>' for sentence in sentences]
    parts += ["<h2>All tasks</h2>", _matrix(outcome), f'<p class="note">{escape(_matrix_note(outcome.reference))}</p>']
    parts += [_summary_table(outcome), f'<p class="note">{escape(SUMMARY_NOTE)}</p>']
    if account.goals:
        names = ("case", "metric", "value", "unit", "reference", "goal", "holds")
        rows = [[_goal_cell(name, row[name]) for name in names] for row in account.goals]
        parts += ["<h2>Goals</h2>", table(names, rows, words=True)]
    if account.anchors:
        parts += ["<h2>Published numbers</h2>", table(ANCHOR_HEADER, account.anchors, words=True)]
    profiles = "The share of tasks on which a contender takes at most so many times the steps of the fastest."
    gains = "The factor in steps against the time of a training step."
    for name, alt in (("profiles", profiles), ("gains", gains)):
        if name in pictures:
            parts.append(figure(pictures[name], alt, account.command))
    return parts


def _goal_cell(name: str, value: Any) -> str:
    if name == "holds":
        return "yes" if value else "no"
    if name == "value":
        return "never" if value is None else f"{value:.3g}"
    return str(value)


def _matrix(outcome: Outcome) -> str:
    """Tasks by contenders: the factor to the reference's best loss."""
    rows = []
    for race in outcome.races:
        row: list[Cell | str] = [race.result.task]
        for label in outcome.labels:
            found, raised = race.row(label), race.raised(label)
            row.append(_factor_cell(found) if found is not None else "raised" if raised else "")
        rows.append(row)
    return table(["task", *outcome.labels], rows)


def _factor_cell(row: Row) -> Cell:
    broken = f", {row.diverged} diverged" if row.diverged else ""
    return Cell(speed_text(row) + broken, row.factor or 0.0)


def _matrix_note(reference: str) -> str:
    return (
        f"How many times sooner, in steps, each reaches the best mean test loss of {reference}, which is at 1 by "
        "definition; n.s.: 1 lies within the 95 % bootstrap interval over seeds."
    )


SUMMARY_NOTE = (
    "Means over tasks are geometric; on 9/10: on the other the target was never reached, and the mean leaves it out. "
    "Faster and slower count the tasks where the factor in steps differs from 1 significantly. Score: the area under "
    "the performance profile up to 4 times the fastest, as in AlgoPerf."
)


def _summary_table(outcome: Outcome) -> str:
    rows = []
    for summary in outcome.summaries:
        label, *others = summary_cells(summary)
        pairs = (
            (summary.factor, summary.factor_where_reached),
            (summary.final_factor, None),
            (summary.clock, summary.clock_where_reached),
        )
        sortable = [Cell(text, _sorted_by(*pair)) for text, pair in zip(others, pairs, strict=False)]
        rows.append([label, *sortable, *others[len(pairs) :]])
    return table(SUMMARY_HEADER, rows)


def _sorted_by(everywhere: float | None, where_reached: float | None) -> float:
    """A mean over all tasks; one over some of them comes after all of these."""
    return everywhere if everywhere is not None else _PARTLY * (where_reached or 0.0)


def _race(race: Race, pictures: Mapping[str, bytes], account: Account, several: bool) -> list[str]:
    """One task: who won, the curves, the table, the learning rates."""
    result = race.result
    sentences = [escape(sentence) for sentence in verdict(result, account.learned)]
    parts = [f"<h2>{escape(result.task)}</h2>"] if several else []
    parts += [f"<p>{sentence}</p>" if several else f'<p class="verdict">{sentence}</p>' for sentence in sentences]
    if account.learned is not None and account.initial is not None:
        sentence = escape(comparison(result, account.learned, account.initial))
        parts += [f"<p>{sentence}</p>" if several else f"<h2>What meta-training did</h2>\n<p>{sentence}</p>"]
    level = "h3" if several else "h2"
    if result.task in pictures:
        command = account.task_commands.get(result.task, account.command)
        parts += [f"<{level}>The curves</{level}>", figure(pictures[result.task], _alt(result), command)]
    meaning = escape(f"{legend(result.target)} {more_legend(result.target)}")
    note = f'<p class="note">{meaning}</p>'
    if several:  # the same under every table
        note = f'<details class="note"><summary>What the columns mean</summary>{meaning}</details>'
    parts += [f"<{level}>The table</{level}>", _table(race), note]
    return [*parts, f"<{level}>Learning rates</{level}>", items(map(_rate, result.entries))]


def _alt(result: Result) -> str:
    return (
        f"Test loss against steps for {', '.join(entry.label for entry in result.entries)}, beside the validation "
        "loss against the learning rate. The table below holds the figures."
    )


def _table(race: Race) -> str:
    body: list[Sequence[Cell | str]] = [_row(race, row) for row in race.rows]
    for failure in race.result.failures:
        body.append(_failed(failure))
    return table([*HEADER, *MORE], body)


def _row(race: Race, row: Row) -> list[Cell | str]:
    label, *others = cells(row, race.costs.contenders.get(row.label))
    clock = race.clock(row)
    values = [row.entry.tuning.lr, row.final.mean, row.best.mean, row.factor or 0.0]
    sortable = [Cell(text, value) for text, value in zip(others, values, strict=False)]
    more = [Cell(text) for text in more_cells(row, clock)]
    return [Cell(label, small=_about(row.entry.contender)), *sortable, *others[len(values) :], *more]


def _failed(failure: Failure) -> list[Cell | str]:
    empty = [""] * (len(HEADER) + len(MORE) - 2)
    return [Cell(failure.label, small=_about(failure.contender)), f"raised {failure.message}", *empty]


def _about(contender: Contender) -> str:
    parts = [contender.kind, f"{contender.schedule.replace('_', ' ')} learning rate", contender.about]
    return ", ".join(part for part in parts if part)


def _rules(outcome: Outcome) -> str:
    result = outcome.races[0].result
    tuned_on = [race.result for race in outcome.races if race.result.tuning_seeds is not None]
    fewer = "".join(f" On {each.task} the first {each.tuning_seeds} of them choose." for each in tuned_on)
    rules = (
        "Every contender makes the same number of steps from the same initial weights and on the same batches, once "
        f"for each seed: {', '.join(map(str, result.seeds))}.",
        "Losses are measured on the whole fixed evaluation batch of each split, at "
        f"{len(result.steps)} points from step 0 to the last.",
        "Hyper-parameters are tuned on the mean final validation loss over the seeds. The runs that choose them never "
        f"look at test data.{fewer}",
        "A grid whose winner lies on its edge is widened until the winner lies inside; where that did not succeed, "
        "the table says so.",
        "A run that ends with a loss that is not finite, or above twice its first, has diverged. It counts as diverged "
        "and is never dropped.",
        "Differences are paired over seeds. One is called significant above two standard errors, if zero also lies "
        "outside the 95 % bootstrap interval.",
        "A step's time is the median of interleaved steps in one process, as a multiple of "
        "torch.optim.Adam(foreach=True).",
    )
    return items(rules)


def _rate(entry: Entry) -> str:
    tuning = entry.tuning
    if not entry.contender.tuned:
        return f"{entry.label}: {lr_text(tuning.lr)}, not tuned."
    grid = "; ".join(f"{name} {', '.join(map(_value, values))}" for name, values in tuning.grid.items())
    edge = " The winner still lies on the edge: a better one may lie outside." if tuning.on_edge else ""
    broken, seeds = sum(tuning.diverged), len(entry.curves.test)
    return (
        f"{entry.label}: {setting_text(tuning.setting)}, the best of {grid} (widened {tuning.widenings} x; {broken} "
        f"runs of {len(tuning.settings)} settings, at most {seeds} each, diverged).{edge}"
    )


def _value(value: Any) -> str:
    return lr_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _cards(outcome: Outcome) -> Iterable[str]:
    """The cards of the checkpoints that raced."""
    cards: dict[str, Mapping[str, Any]] = {}
    for race in outcome.races:
        for each in (*race.result.entries, *race.result.failures):
            if each.contender.card:
                cards[each.label] = each.contender.card
    if not cards:
        return []
    shown = [
        f"<h3>{escape(label)}</h3>\n<dl>" + "".join(_card_line(key, value) for key, value in card.items()) + "</dl>"
        for label, card in cards.items()
    ]
    return ["<h2>Cards of the fitted rules</h2>", *shown]


def _card_line(key: str, value: Any) -> str:
    """A line of a card; what is nested or long is folded."""
    if isinstance(value, Mapping):
        return folded(str(key), json.dumps(value, ensure_ascii=False, indent=1))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return folded(str(key), text) if len(text) > LONGEST_LINE else definition(str(key), text)


def _listed(content: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in content.items())
