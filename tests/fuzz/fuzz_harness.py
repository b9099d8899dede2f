"""Runs fuzzed cases one by one, and records each one's outcome, time and memory."""

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

MOST_BYTES = 2_000_000_000  # memory that a case may add to the process
MOST_SECONDS = 30.0  # time limit of a case, on a busy machine
Attempt = Callable[[Random], None]  # draws a case and tries it; one of our own errors is a rejection


class AcceptedDamageError(Exception):
    """Damaged input was accepted as intact."""


class TooLongError(BaseException):
    """A case took too long; neither `except OSError` nor `except Exception` catches it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case; kind and seed reproduce it."""

    kind: str
    seed: int
    result: Literal["accepted", "rejected", "fault"]
    detail: str
    seconds: float
    peak_bytes: int


def run_case(kind: str, attempt: Attempt, seed: int) -> Outcome:
    """Run one case; only exceptions that end the process are raised."""
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
    except BaseException as error:  # a panic of a Rust library is not an Exception
        result, detail = "fault", "".join(traceback.format_exception(error))[-2000:]
    seconds, peak = time.monotonic() - started, peak_memory() - before
    if result != "fault" and peak > MOST_BYTES:
        result, detail = "fault", f"took {peak / 1e9:.1f} GB"
    return Outcome(kind, seed, result, detail, seconds, peak)


def _judged(error: InfidError) -> tuple[Any, str]:
    """Check that a rejection has a problem and a fix, at least one sentence each."""
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
