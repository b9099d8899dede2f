"""Everything the command prints: data on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from infid_engines.progress import SilentReporter, Stage

_PLAIN_INTERVAL = 5.0  # seconds between progress lines where stderr is not a terminal


class Output:
    """The one place that prints.

    Args:
        as_json: print one JSON document instead of tables.
        quiet: no progress and no notes.
    """

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._out = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
        self._err = Console(file=sys.stderr, highlight=False)

    def document(self, value: Any) -> None:
        """Print the JSON document, if asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")

    def line(self, text: str = "") -> None:
        """Print a line of data."""
        if not self.as_json:
            self._out.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table that fits the terminal; long cells fold."""
        if self.as_json or not rows:
            return
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*[_plain(cell) for cell in row])
        self._out.print(table, soft_wrap=False)

    def note(self, text: str) -> None:
        """Tell the user something on stderr."""
        if not self.quiet:
            self._err.print(text, markup=False)

    @contextmanager
    def progress(self) -> Iterator[SilentReporter | TerminalReporter]:
        """Show progress while the block runs."""
        if self.quiet:
            yield SilentReporter()
            return
        with TerminalReporter(self._err) as reporter:
            yield reporter


def _plain(cell: str) -> str:
    return cell.replace("[", r"\[")


class TerminalReporter:
    """One bar over the whole work with the time left; lines where stderr is not a terminal.

    Args:
        console: of stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._expected: dict[str, float] = {}
        self._done = 0.0
        self._spent = 0.0
        self._started = time.monotonic()
        self._last_line = 0.0
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task("", total=1.0, left="")

    def __enter__(self) -> TerminalReporter:
        """Start drawing."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        if self._progress:
            self._progress.stop()

    def plan(self, stages: dict[str, float]) -> None:
        """Take the expected seconds of all stages."""
        self._expected = stages
        self._started = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter a stage."""
        expected = self._expected.get(name, 0.0)
        stage = _TerminalStage(self, name, expected)
        began = time.monotonic()
        stage.update(0.0)
        yield stage
        self._done += expected
        self._spent += time.monotonic() - began
        self.show(name, 0.0, 0.0, "")

    def note(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._console.print(text, markup=False)

    def show(self, name: str, expected: float, fraction: float, detail: str) -> None:
        """Draw the state."""
        total = sum(self._expected.values()) or 1.0
        done = min(self._done + expected * fraction, total)
        # the pace so far says how far the expected seconds are off on this machine
        pace = (time.monotonic() - self._started) / done if done > 0.02 * total else 1.0
        left = _duration((total - done) * pace)
        text = f"{name} {detail}".strip()
        if self._progress:
            self._progress.update(self._task, completed=done / total, description=text[:50], left=f"{left} left")
        elif time.monotonic() - self._last_line > _PLAIN_INTERVAL:
            self._last_line = time.monotonic()
            self._console.print(f"{done / total:4.0%} {text}, {left} left", markup=False)


class _TerminalStage:
    def __init__(self, reporter: TerminalReporter, name: str, expected: float) -> None:
        self._reporter, self._name, self._expected = reporter, name, expected
        self._fraction = 0.0

    def update(self, fraction: float, detail: str = "") -> None:
        self._fraction = max(self._fraction, min(fraction, 1.0))
        self._reporter.show(self._name, self._expected, self._fraction, detail)


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def size(count: float) -> str:
    """Return bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
