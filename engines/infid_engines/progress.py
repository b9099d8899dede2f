"""Progress of long work: stages with a fraction done, which a reporter displays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stage(Protocol):
    """One piece of work in progress."""

    def update(self, fraction: float, detail: str = "") -> None:
        """Report that `fraction` (0 to 1) is done; `detail` describes the current work."""


class Reporter(Protocol):
    """Receives the progress of a build, a verification or a generation."""

    def plan(self, stages: dict[str, float]) -> None:
        """Announce all stages with their expected seconds, so that the time left covers all of them."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter one announced stage; leaving it marks it done."""

    def note(self, text: str) -> None:
        """Show one sentence to the user, for example what was chosen and why."""


class SilentStage:
    """A stage that shows nothing."""

    def update(self, fraction: float, detail: str = "") -> None:
        """Ignore the progress."""


class SilentReporter:
    """A reporter that shows nothing; the default of every library call."""

    def plan(self, stages: dict[str, float]) -> None:
        """Ignore the announcement."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter a stage that shows nothing."""
        yield SilentStage()

    def note(self, text: str) -> None:
        """Ignore the sentence."""
