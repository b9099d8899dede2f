"""Timing calls side by side: they take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call.

    Args:
        median_ms: the median.
        p20_ms: a fifth of the calls were at most this long.
        p80_ms: four fifths were.
        samples: number of calls.
        joules: mean energy of the device per call; None if it is not metered.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    samples: int
    joules: float | None = None


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    on_call: Callable[[float, str], None] = lambda fraction, name: None,
    burst: int = 1,
    joules: Callable[[], float | None] = lambda: None,
) -> dict[str, Times]:
    """Time calls that take turns. The first turn of each does not count.

    Args:
        calls: by name.
        rounds: number of turns that count.
        on_call: called before each turn with the fraction that is done, and the name.
        burst: calls in a turn. Only the last one is timed, with warm caches, as a step among others of its kind is.
        joules: returns the energy that the device has used so far.
    """
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    energies: dict[str, list[float]] = {name: [] for name in calls}
    turns = [(number, name) for number in range(rounds + 1) for name in calls]
    for done, (number, name) in enumerate(turns):
        on_call(done / len(turns), name)
        for _ in range(burst - 1):
            calls[name]()
        before, started = joules(), time.perf_counter()
        calls[name]()
        seconds, after = time.perf_counter() - started, joules()
        if number:
            milliseconds[name].append(1e3 * seconds)
            if before is not None and after is not None and after >= before:  # a counter can start again at 0
                energies[name].append(after - before)
    return {name: _summary(each, energies[name]) for name, each in milliseconds.items()}


def _summary(milliseconds: list[float], joules: list[float]) -> Times:
    low, middle, high = (float(each) for each in np.quantile(milliseconds, (0.2, 0.5, 0.8)))
    energy = round(sum(joules) / len(joules), 3) if joules else None
    return Times(round(middle, 3), round(low, 3), round(high, 3), len(milliseconds), energy)
