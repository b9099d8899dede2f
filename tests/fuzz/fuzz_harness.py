"""Runs fuzzed cases one by one: what came of each, how long it took, and how much memory."""

from __future__ import annotations

import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from infid_engines.errors import InfidError
from infid_engines.memory import peak_memory, reset_peak_memory

MOST_BYTES = 2_000_000_000  # that a case may add to the process
MOST_SECONDS = 30.0  # of a case, on a busy machine
Attempt = Callable[[Random], None]  # draws a case and tries it; an error of ours is a rejection


class AcceptedDamageError(Exception):
    """Something that was damaged was taken for whole."""


class TooLongError(BaseException):
    """A case took too long; no `except OSError` and no `except Exception` takes it for something else."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case; kind and seed make it again."""

    kind: str
    seed: int
    result: Literal["accepted", "rejected", "fault"]
    detail: str
    seconds: float
    peak_bytes: int


def run_case(kind: str, attempt: Attempt, seed: int) -> Outcome:
    """Run one case; nothing is raised but what ends the process."""
    reset_peak_memory()
    before, started = peak_memory(), time.monotonic()
    result, detail = "accepted", ""
    try:
        with warnings.catch_warnings(), _limited(MOST_SECONDS):
            warnings.simplefilter("ignore")
            attempt(Random(f"{kind} {seed}"))
    except InfidError as error:
        result, detail = _judged(error)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        result, detail = "fault", "".join(traceback.format_exception(error))[-2000:]
    seconds, peak = time.monotonic() - started, peak_memory() - before
    if result != "fault" and peak > MOST_BYTES:
        result, detail = "fault", f"took {peak / 1e9:.1f} GB"
    return Outcome(kind, seed, result, detail, seconds, peak)


def _judged(error: InfidError) -> tuple[Any, str]:
    """A rejection has a problem and a fix, a sentence or more each."""
    for part in (error.problem, error.fix):
        if not part.strip() or part.strip() != part or "Traceback" in part:
            return "fault", f"no sentence: {error.problem!r} {error.fix!r}"
    return "rejected", f"{type(error).__name__}: {error}"[:500]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLongError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
