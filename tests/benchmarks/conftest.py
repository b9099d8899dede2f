from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suite_parts import TINY, FakeBench

import gpu_bench
import gpu_checks
from gpu_checks import Check
from gpu_suite import Suite


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench(torch.device("cpu"), TINY, False, lambda: 100.0, 1)


@pytest.fixture
def suite(bench: FakeBench, tmp_path: Path) -> Suite:
    def restart() -> None:
        raise AssertionError("nothing here is lost")

    document = {"schema_version": 2, "model": "demo"}
    return Suite(bench, tmp_path / "result.json", document, restart, quiet=True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo workload with tiny calls, and no checks but theirs."""
    monkeypatch.setitem(gpu_bench.WORKLOADS, "demo", TINY)
    monkeypatch.setattr(
        gpu_checks, "checks", lambda workload: {name: Check(call) for name, call in workload.calls.items()}
    )
