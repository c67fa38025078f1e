"""How far a race is, on stderr: a bar with the time left on a terminal, a line for each contender elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmark.race import Entry, Failure
from benchmark.wording import lr_text, setting_text


class ConsoleWatcher:
    """A `Watcher` that writes to a console.

    Args:
        console: where to write; stderr unless given.
        several: whether lines must name the task.
    """

    def __init__(self, several: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.several, self.expected = several, 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, left:"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("race", total=None)

    def __enter__(self) -> ConsoleWatcher:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def expect(self, steps: int) -> None:
        self.expected += steps
        self.progress.update(self.bar, total=self.expected)

    def begin(self, task: str, label: str) -> None:
        self.progress.update(self.bar, description=escape(f"{task}, {label}" if self.several else label))

    def advance(self, steps: int) -> None:
        self.progress.advance(self.bar, steps)

    def finish(self, task: str, entry: Entry | Failure) -> None:
        text = f"raised {entry.message}" if isinstance(entry, Failure) else _outcome(entry)
        self.say(f"{task}, {entry.label}: {text}" if self.several else f"{entry.label}: {text}")

    def say(self, line: str) -> None:
        """One line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _outcome(entry: Entry) -> str:
    """What is to be known of the setting."""
    tuning = entry.tuning
    if not entry.contender.tuned:
        return f"{setting_text(tuning.setting)}, not tuned"
    widened = {0: "", 1: ", widened once"}.get(tuning.widenings, f", widened {tuning.widenings} times")
    edge = "; still on the edge: a better one may lie outside" if tuning.on_edge else ""
    low, high = lr_text(tuning.rates[0]), lr_text(tuning.rates[-1])
    return (
        f"{setting_text(tuning.setting)}, tuned on {len(tuning.settings)} with learning rates from {low} to {high}"
        f"{widened}{edge}"
    )
