from __future__ import annotations

import time

import pytest

from infid_export.bench.timing import Times, take_turns


def test_calls_take_turns_and_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = iter(range(1000)), []
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    found = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4
    assert found == {"a": Times(1000.0, 1000.0, 1000.0, 3), "b": Times(1000.0, 1000.0, 1000.0, 3)}


def test_of_a_burst_only_the_last_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, count = [0.0], [0]

    def call() -> None:
        count[0] += 1
        now[0] += 10.0 if count[0] % 3 else 0.25  # the third of each burst is quick

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seen: list[tuple[float, str]] = []
    found = take_turns({"a": call}, 4, lambda *each: seen.append(each), burst=3)
    assert found["a"] == Times(250.0, 250.0, 250.0, 4)
    assert seen == [(index / 5, "a") for index in range(5)]


def test_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lengths = [0.0], iter([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def call() -> None:
        now[0] += next(lengths)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert take_turns({"a": call}, 6)["a"] == Times(3500.0, 2000.0, 5000.0, 6)


def test_the_energy_of_a_call_is_the_mean_of_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    used, costs = [100.0], {"a": iter([50.0, 2.0, 4.0]), "b": iter([1.0, 10.0, -200.0])}

    def call(name: str) -> None:
        used[0] += next(costs[name])

    found = take_turns({name: lambda name=name: call(name) for name in "ab"}, 2, joules=lambda: used[0])
    # the first turn does not count, nor one in which the counter started again
    assert {name: each.joules for name, each in found.items()} == {"a": 3.0, "b": 10.0}
    assert take_turns({"a": lambda: None}, 1)["a"].joules is None
