"""Progress on stderr: one bar for all stages, or, without a terminal, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infid_engines.progress import Stage

_LINE_INTERVAL = 5.0  # seconds between lines where stderr is not a terminal
_REFRESHES = 4.0  # per second, on a terminal
_SILENT_STAGE = 0.9  # the fraction at which a stage that reports nothing is assumed to be after its expected time
_PRIOR = 0.05  # weight of the plan against the observed pace, as a fraction of the planned seconds
_BAR_FROM = 60  # columns; a narrower terminal shows the numbers only


class Estimate:
    """How much of the planned work is done, and how long the rest takes at the observed pace.

    Args:
        clock: returns seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._expected: dict[str, float] = {}
        self._left_behind: set[str] = set()
        self._stage = ""
        self._stage_started = self._started
        self._fraction = 0.0
        self._shown = 0.0

    def plan(self, stages: dict[str, float]) -> None:
        """Set the expected seconds of all stages, and start the clock."""
        self._expected = dict(stages)
        self._left_behind = set()
        self._stage, self._fraction, self._shown = "", 0.0, 0.0
        self._started = self._clock()

    def enter(self, name: str) -> None:
        """Start a stage; one that was not planned counts as no time."""
        self._stage, self._fraction, self._stage_started = name, 0.0, self._clock()

    def update(self, fraction: float) -> None:
        """Set the fraction of the stage that is done."""
        self._fraction = max(self._fraction, min(fraction, 1.0))

    def leave(self) -> None:
        """End the stage."""
        self._left_behind.add(self._stage)
        self._stage, self._fraction = "", 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the plan."""
        return self._clock() - self._started

    def times(self) -> str:
        """Return the time elapsed and, once there is a plan, the time left."""
        spent = f"{duration(self.elapsed)} elapsed"
        return f"{spent}, {duration(self.read()[1])} left" if self._expected else spent

    def read(self) -> tuple[float, float]:
        """Return the overall fraction done, which never decreases, and the seconds left."""
        total = sum(self._expected.values())
        if total <= 0:
            return 0.0, 0.0
        finished = sum(seconds for name, seconds in self._expected.items() if name in self._left_behind)
        pace = (self.elapsed + _PRIOR * total) / (finished + self._inside(1.0) + _PRIOR * total)
        # the current stage may report nothing, so its share is computed from the pace above
        done = min(finished + self._inside(max(pace, 1e-9)), total)
        self._shown = max(self._shown, done / total)
        return self._shown, (total - done) * pace

    def _inside(self, pace: float) -> float:
        """Return the planned seconds of the current stage that are done."""
        expected = self._expected.get(self._stage, 0.0)
        if self._stage in self._left_behind or expected <= 0:
            return 0.0
        by_time = min((self._clock() - self._stage_started) / (expected * pace), _SILENT_STAGE)
        return expected * (self._fraction or by_time)


class TerminalReporter:
    """Draws progress; a context manager.

    Args:
        console: the console on stderr.
        clock: returns seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._estimate = Estimate(clock)
        self._name, self._detail = "starting", ""
        self._last_line: float | None = None
        self._held_back = False
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(get_renderable=self._draw, console=console, transient=True, refresh_per_second=_REFRESHES)

    def __enter__(self) -> TerminalReporter:
        """Start drawing."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing and clear the bar."""
        if self._live:
            self._live.stop()

    def plan(self, stages: dict[str, float]) -> None:
        """Set the expected seconds of all stages."""
        self._estimate.plan(stages)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter a stage."""
        self._estimate.enter(name)
        self._tell(name, "")
        yield _Stage(self, name)
        if self._held_back:
            self._print_line()  # a log shows how each stage ended
        self._estimate.leave()
        self._tell(name, "")

    def note(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._console.print(Text(text), soft_wrap=True)

    def update(self, name: str, fraction: float, detail: str) -> None:
        """Set the state of the current stage."""
        self._estimate.update(fraction)
        self._tell(name, detail)

    def _tell(self, name: str, detail: str) -> None:
        self._name, self._detail = name, detail
        if self._live is not None:
            return  # it draws by itself
        if self._last_line is None or self._clock() - self._last_line >= _LINE_INTERVAL:
            self._print_line()
        else:
            self._held_back = bool(detail)

    def _print_line(self) -> None:
        self._last_line, self._held_back = self._clock(), False
        done, _ = self._estimate.read()
        text = f"{done:4.0%} {self._what()} ({self._estimate.times()})"
        self._console.print(Text(text), soft_wrap=True)

    def _what(self) -> str:
        return f"{self._name} {self._detail}".strip()

    def _draw(self) -> Table:
        done, _ = self._estimate.read()
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        cells: list[Text | ProgressBar] = [Text(self._what())]
        if self._console.width >= _BAR_FROM:
            grid.add_column(width=20)
            cells.append(ProgressBar(total=1.0, completed=done, width=20))
        grid.add_column(no_wrap=True, justify="right")
        cells.append(Text(f"{done:4.0%} {self._estimate.times()}"))
        grid.add_row(*cells)
        return grid


class _Stage:
    def __init__(self, reporter: TerminalReporter, name: str) -> None:
        self._reporter, self._name = reporter, name

    def update(self, fraction: float, detail: str = "") -> None:
        self._reporter.update(self._name, fraction, detail)


def duration(seconds: float) -> str:
    """Return minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
