"""What the suite runs with where there is no GPU: tiny calls and made-up times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.suite.bench import DEMO, Bench, Item
from infid_kernels import measure
from infid_kernels.autotune import Level
from infid_kernels.measure import Call, Timing

MIXED, MERGED = Call("mixed_attention", 2, 2, 40, 50, 30), Call("merged_cross_attention", 2, 2, 40, 50, 7)
TINY = replace(
    DEMO, calls={"mixed-4096": MIXED, "merged-4096": MERGED}, matrix=64, copy=1024, races=3, patience=30.0,
    levels=(
        Level("whole", Call("mixed_attention", 2, 2, 64, 64, 64), 0, True),
        Level("odd", MIXED, 0, False),
        Level("merged", MERGED, 0, False),
    ),
)  # fmt: skip


class FakeBench(Bench):
    """Runs every call once; the first timing is a millisecond, and each further one is a millisecond longer."""

    timed = 0

    def time(self, calls: Sequence[Callable[[], object]], samples: int | None = None) -> Timing:
        for call in calls:
            call()
        self.timed += 1
        return Timing(float(self.timed), self.timed - 0.1, self.timed + 0.1, samples or 50)

    def sets(self, bytes_per_set: int) -> range:
        return range(2)


def timed(name: str, op: str | None = None, seconds: float = 1.0, phase: int = 1) -> Item:
    return Item(name, seconds, lambda bench: {"median": 1.0}, op, phase=phase)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = measure.launch_mixed_attention

    def spoiled(*arguments: Any) -> None:
        launch(*arguments)
        arguments[3][:, :, -1] = float("nan")  # the last query is not written

    monkeypatch.setattr(measure, "launch_mixed_attention", spoiled)
