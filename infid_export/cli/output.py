"""Everything the command prints: data on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infid_engines.errors import InfidError
from infid_engines.progress import SilentReporter
from infid_export.cli.progress_bar import TerminalReporter

_FOLDED = 20  # columns: cells are folded down to this; a table that still does not fit is shown as records
_GAP = 2  # spaces between two columns of a table
_UNLIMITED = 100_000  # width of a file or a pipe: nothing is folded there
_STYLES = {"PASSED": "green", "FAILED": "bold red", "missing": "red", "BROKEN": "bold red"}


class _Console(Console):
    """A console that leaves a closed pipe to the command, which knows the real stdout."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled."""
        raise


class Output:
    """The only place that prints. Words carry the meaning, and color only repeats it.

    Args:
        as_json: print one JSON document instead of tables and lines.
        quiet: no progress and no notes.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._stdout = sys.stdout
        self._width = _columns(sys.stdout)
        self._out = _Console(file=sys.stdout, highlight=False, width=self._width)
        self._err = _Console(file=sys.stderr, highlight=False)
        self._documents = 0

    def document(self, value: Any) -> None:
        """Print the JSON document if --json was given; only the first call prints."""
        if self.as_json and not self._documents:
            self._documents += 1
            self._stdout.write(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")
            self._stdout.flush()  # whoever reads the pipe of a server waits for it

    def line(self, text: str = "") -> None:
        """Print a line of data, never folded, so that a path can be copied."""
        if not self.as_json:
            self._out.print(Text(text, style=_STYLES.get(text.split(" ")[0], "")), soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()
    ) -> None:
        """Print a table, or one record per row where the terminal is too narrow for the table.

        Args:
            title: the line above the table.
            columns: headings.
            rows: cells.
            numbers: headings of right-aligned columns.
        """
        if self.as_json or not rows:
            return
        self._out.print(Text(title, style="bold"), soft_wrap=self._width == _UNLIMITED)
        widths = [max(cell_len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
        if sum(min(width, _FOLDED) for width in widths) + _GAP * (len(widths) - 1) > self._width:
            self._records(columns, rows)
            return
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for name, width in zip(columns, widths, strict=True):
            justify = "right" if name in numbers else "left"
            table.add_column(name, overflow="fold", no_wrap=width <= _FOLDED, justify=justify)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*map(_styled, row))
        self._out.print(table)
        self._out.print()

    def _records(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            record = Table.grid(padding=(0, 1))
            record.add_column(no_wrap=True)
            record.add_column(overflow="fold")
            for name, cell in zip(columns, row, strict=True):
                record.add_row(Text(f"{name}:"), _styled(cell))
            self._out.print(record)
            self._out.print()

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        if not self.quiet:
            self._err.print(Text(text), soft_wrap=True)

    @contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        """Print the warnings of the block as notes afterwards, each sentence once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        for sentence in dict.fromkeys(told):
            self.note(f"note: {sentence}")

    def problem(self, error: InfidError) -> None:
        """Print the problem and its fix: on stderr, and as the document if --json was given."""
        self._err.print(Text(f"error: {error.problem}"), soft_wrap=True, style="bold red")
        self._err.print(Text(f"  fix: {error.fix}"), soft_wrap=True)
        self.document({"error": {"kind": type(error).__name__, "problem": error.problem, "fix": error.fix}})

    def fault(self, error: BaseException, trace: str) -> None:
        """Print a bug with its traceback."""
        self._err.print(Text(trace), soft_wrap=True)
        sentence = "This is a bug in infid-export, not in your input. Please report it with the lines above."
        self._err.print(Text(sentence), soft_wrap=True)
        self.document({"error": {"kind": type(error).__name__, "problem": str(error), "fix": sentence}})

    @contextmanager
    def progress(self) -> Iterator[SilentReporter | TerminalReporter]:
        """Show progress on stderr while the block runs."""
        if self.quiet:
            yield SilentReporter()
            return
        with TerminalReporter(self._err) as reporter:
            yield reporter


def _columns(stream: TextIO) -> int:
    """Return the output width: COLUMNS, else the terminal's. A file or a pipe has no limit."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _UNLIMITED
    except (OSError, ValueError):
        return _UNLIMITED


def _styled(cell: str) -> Text:
    return Text(cell, style=_STYLES.get(cell, ""))


def _plain(value: Any) -> Any:
    """Return the value in JSON's types; non-finite numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def shown(path: Path) -> str:
    """Return a path as the user would type it: relative if it is in the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def size(count: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
