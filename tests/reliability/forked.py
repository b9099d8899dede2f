"""Work in children of a process that has imported everything, so that a kill hits the work and not the imports."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        killed: whether it was killed before it was done.
        code: its exit code otherwise.
        seconds: how long it ran.
    """

    killed: bool
    code: int
    seconds: float


def run_forked(work: Callable[[], object], kill_after: float | None = None) -> Ended:
    """Run work in a child process, and kill it with signal 9 after some seconds.

    Args:
        work: is done when it returns.
        kill_after: None lets it finish.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)  # no cleanup by pytest or anything else, as after a kill
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    return Ended(killed, -1 if killed else os.WEXITSTATUS(status), time.monotonic() - started)
