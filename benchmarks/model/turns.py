"""Turns at the GPU for processes that compile at the same time: they are timed one after the other.

Compilation uses the GPU too, so nothing is timed before the last process has compiled.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.suite.bench import Bench

# Seconds reserved for timing: with less left, a process no longer waits for those that still compile.
TIMING = 45.0


@contextmanager
def turn(folder: Path, name: str, names: Sequence[str], bench: Bench) -> Iterator[None]:
    """Wait until no process is compiling, or little time is left, and then until no other one is being timed.

    Args:
        folder: folder where each process creates a file once it has compiled or ended.
        name: name of the process that has compiled.
        names: names of all processes.
        bench: says how much time is left.
    """
    (folder / name).touch()
    while any(not (folder / other).exists() for other in names) and bench.seconds_left() > TIMING:
        time.sleep(0.1)
    with (folder / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
