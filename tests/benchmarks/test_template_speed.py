from __future__ import annotations

import time

import pytest

from benchmarks import template_speed


def test_calls_take_turns_and_the_first_round_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = iter(range(1000)), []
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    found = template_speed.medians({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert order == ["a", "b"] * 4
    assert found == {"a": 1.0, "b": 1.0}


def test_the_table_has_every_ratio() -> None:
    drawn = template_speed.table({"ratio": {"x / y": 0.5}, "rounds": 9, "machine": "2 cores"})
    assert "| x / y | 0.5 |" in drawn.splitlines()
    assert drawn.endswith("Medians of 9 rounds on 2 cores.")
