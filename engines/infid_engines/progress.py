"""How long work reports itself: stages with a fraction done, rendered by whoever listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stage(Protocol):
    """One piece of work in progress."""

    def update(self, fraction: float, detail: str = "") -> None:
        """Report that `fraction` (0 to 1) is done; `detail` says what is being done now."""


class Reporter(Protocol):
    """Receives the progress of a build, a verification or a generation."""

    def plan(self, stages: dict[str, float]) -> None:
        """Announce all stages with their expected seconds, so that time left covers the whole work."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter one announced stage; leaving it marks it done."""

    def note(self, text: str) -> None:
        """Tell the user one sentence (what was chosen and why)."""


class _SilentStage:
    def update(self, fraction: float, detail: str = "") -> None:
        pass


class SilentReporter:
    """A reporter that shows nothing; the default of every library call."""

    def plan(self, stages: dict[str, float]) -> None:
        """Ignore the announcement."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Enter a stage that shows nothing."""
        yield _SilentStage()

    def note(self, text: str) -> None:
        """Ignore the sentence."""
