"""Calls from asyncio: one at a time on a thread of their own, and stopped with the task that awaits them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

Result = TypeVar("Result")


class CallThread:
    """A thread that runs the calls of coroutines, in their order. It starts with the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[[threading.Event], Result]) -> Result:
        """Run a call on the thread, while the event loop goes on.

        When the awaiting task is cancelled, a call that still waits for its turn is dropped at once. One that runs is
        asked to stop, and the task ends when it has stopped.

        Args:
            call: gets an event that asks it to stop.
        """
        cancel = threading.Event()
        with self._lock:
            self._executor = self._executor or ThreadPoolExecutor(1, "infid-export")
            submitted = self._executor.submit(copy_context().run, call, cancel)
        outcome = asyncio.wrap_future(submitted)
        try:
            await asyncio.wait([outcome])  # a cancelled task would cancel what it awaits; this leaves it alone
        except asyncio.CancelledError:
            cancel.set()
            if not submitted.cancel():
                await _ended(outcome)
            raise
        return outcome.result()

    def close(self) -> None:
        """Wait for all calls, and end the thread. The next call starts another one."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


async def _ended(outcome: asyncio.Future[Result]) -> None:
    """Wait for the end of a call, even if the task is cancelled again."""
    while not outcome.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([outcome])
    outcome.exception()  # asyncio logs an exception that nobody looks at
