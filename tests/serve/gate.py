"""Holds the generations of a server, so that a test can arrange what waits."""

from __future__ import annotations

import threading
from typing import Any

from running import Running


class Gate:
    """Holds every generation until it is opened, and counts what was drawn."""

    def __init__(self, server: Running) -> None:
        self.pipe = server.service.pipe
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        self.rounds: list[int] = []
        self.fails: dict[str, Exception] = {}
        self.generate = self.pipe.generate
        self.pipe.generate = self  # type: ignore[method-assign, assignment]

    def __call__(self, prompt: Any, people: Any, **given: Any) -> Any:
        self.entered.release()
        assert self.open.wait(20)
        self.rounds.append(len(people))
        for text, error in self.fails.items():
            if isinstance(prompt, list) and text in prompt:
                raise error
        return self.generate(prompt, people, **given)
