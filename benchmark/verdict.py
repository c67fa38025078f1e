"""Who won, in words that follow from the numbers alone: also when it is Adam, and when nothing can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmark.measures import Difference, Spread
from benchmark.outcome import Outcome
from benchmark.race import Result
from benchmark.standings import Row, compare, standings
from benchmark.wording import loss_text, spread_text


def verdict(result: Result, learned: str | None = None) -> list[str]:
    """Who won, and how the learned rule stands against the reference: one or two plain sentences.

    Args:
        learned: label of the contender that the race is about.
    """
    rows = standings(result)
    sentences = [_winner(result, rows)]
    ours = next((row for row in rows if row.label == learned), None)
    if ours is not None and learned != result.target:
        sentences.append(_against_reference(result, ours))
    return sentences + [f"{failure.label} raised {failure.message}." for failure in result.failures]


def summary_sentences(outcome: Outcome, learned: str | None = None) -> list[str]:
    """Who is ahead over a suite, and how the learned rule stands against the reference: one or two plain sentences."""
    first = outcome.summaries[0]
    count = len(outcome.races)
    reference = outcome.reference
    sentences = [
        f"Over {count} tasks {first.label} is ahead: it is nearest to the fastest way to the best test loss of "
        f"{reference} (area under its performance profile {first.score:.2f} of 1)."
    ]
    ours = next((summary for summary in outcome.summaries if summary.label == learned), None)
    if ours is None or learned == reference:
        return sentences
    parts = [
        f"{learned} reaches the best test loss of {reference} sooner on {ours.faster} of {count} tasks and later or "
        f"never on {ours.slower}"
    ]
    if rest := ours.tasks - ours.faster - ours.slower:
        parts.append(f"on {'one' if rest == 1 else rest} nothing significant can be told")
    if ours.factor_where_reached is not None:
        where = (
            "on average" if ours.reached == ours.tasks else f"on the average of those that it reaches ({ours.reached})"
        )
        parts.append(f"the factor in steps is {ours.factor_where_reached:.2f} {where}")
    return [*sentences, "; ".join(parts) + "." + (f" It raised on {ours.raised}." if ours.raised else "")]


def comparison(result: Result, learned: str, initial: str) -> str:
    """What meta-training did: the meta-trained rule against the same rule before meta-training, in one sentence."""
    difference = compare(result, learned, initial)
    if difference is None:
        return f"{learned} and {initial} cannot be compared: {_who_diverged(result, learned, initial)}."
    if not difference.significant:
        return f"{learned} against {initial}: {_size(difference)}: {_significance(difference)}."
    return f"{learned} ends {_size(difference)} than {initial}: {_significance(difference)}."


def _winner(result: Result, rows: Sequence[Row]) -> str:
    if not rows:
        return "Nobody won: every contender raised an error."
    first = rows[0]
    if not math.isfinite(first.final.mean):
        return "Nobody won: no contender ended with a finite test loss on every seed."
    if len(rows) == 1:
        return f"{first.label} ran alone: final test loss {spread_text(first.final)}."
    second = rows[1].label
    difference = compare(result, first.label, second)
    if difference is None:
        return (
            f"{first.label} won with a final test loss of {spread_text(first.final)}: every other contender ended "
            "without a finite test loss on some seed."
        )
    if difference.significant:
        return (
            f"{first.label} won: its final test loss of {spread_text(first.final)} is the lowest of {len(rows)}, "
            f"{_magnitude(difference)} below {second}, which came second "
            "(more than two standard errors)."
        )
    return (
        f"No clear winner: {first.label} has the lowest final test loss, {spread_text(first.final)}, but its lead of "
        f"{_magnitude(difference)} over {second} is not significant "
        "(less than two standard errors)."
    )


def _against_reference(result: Result, row: Row) -> str:
    reference = _reference_name(result)
    difference = compare(result, row.label, result.target)
    if difference is None:
        ending = f"{row.label} cannot be compared with {reference}: {_who_diverged(result, row.label, result.target)}"
    elif difference.significant:
        ending = f"{row.label} ends {_size(difference)} than {reference} ({_significance(difference)})"
    else:
        ending = (
            f"{row.label} cannot be told from {reference} at the end ({_size(difference)}: {_significance(difference)})"
        )
    return f"{ending}, and {_speed(row, reference)}."


def _speed(row: Row, reference: str) -> str:
    if row.speed is None:
        return f"there is no best mean test loss of {reference} to reach"
    if row.speed.steps is None:
        return f"it never reaches the best mean test loss of {reference}, {loss_text(row.speed.target)}"
    return (
        f"it reaches the best mean test loss of {reference}, {loss_text(row.speed.target)}, "
        f"after {row.speed.steps:.0f} steps, where {reference} takes {row.speed.reference_steps:.0f}"
    )


def _reference_name(result: Result) -> str:
    entry = result.reference
    return f"tuned {entry.label}" if entry is not None and entry.contender.tuned else result.target


def _size(difference: Difference) -> str:
    """The difference and its direction, to stand before "than"."""
    direction = "lower" if difference.mean < 0 else "higher"
    return f"{_magnitude(difference)} {direction} in test loss"


def _magnitude(difference: Difference) -> str:
    return spread_text(Spread(abs(difference.mean), difference.error))


def _significance(difference: Difference) -> str:
    return "more than two standard errors" if difference.significant else "not significant, within two standard errors"


def _who_diverged(result: Result, *labels: str) -> str:
    finite = {row.label for row in standings(result) if math.isfinite(row.final.mean)}
    broken = [label for label in labels if label not in finite]
    return " and ".join(f"{label} did not end with a finite test loss on every seed" for label in broken)
