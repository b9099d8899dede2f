from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suite_parts import TINY, FakeBench

from benchmarks.kernels import checks
from benchmarks.kernels.checks import Check
from benchmarks.suite.bench import WORKLOADS
from benchmarks.suite.runner import Suite
from infid_kernels import tuning


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run of the suite adopts is forgotten when its test ends."""
    monkeypatch.setattr(tuning, "_measured", [])


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench(torch.device("cpu"), TINY, False, lambda: 100.0, 1)


@pytest.fixture
def suite(bench: FakeBench, tmp_path: Path) -> Suite:
    def restart() -> None:
        raise AssertionError("nothing here is lost")

    document = {"schema_version": 3, "model": "demo"}
    return Suite(bench, tmp_path / "result.json", document, restart, quiet=True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo workload with tiny calls, and only the checks of those calls."""
    monkeypatch.setitem(WORKLOADS, "demo", TINY)
    monkeypatch.setattr(checks, "checks", lambda workload: {name: Check(call) for name, call in workload.calls.items()})
