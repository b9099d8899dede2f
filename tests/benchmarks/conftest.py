from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suite_parts import TINY, FakeBench

import gpu_checks
import gpu_items
import gpu_suite
from gpu_checks import Check
from gpu_suite import Suite


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench(torch.device("cpu"), False, lambda: 100.0, 1)


@pytest.fixture
def suite(bench: FakeBench, tmp_path: Path) -> Suite:
    return Suite(bench, tmp_path / "result.json", {"schema_version": 1}, quiet=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny calls in fp16; nothing is compiled."""
    for module in (gpu_checks, gpu_items, gpu_suite):
        monkeypatch.setattr(module, "SDXL_CALLS", TINY)
        monkeypatch.setattr(module, "DTYPES", {"float16": torch.float16})
    monkeypatch.setattr(gpu_checks, "CORRECTNESS", {name: Check(call) for name, call in TINY.items()})
    monkeypatch.setattr(gpu_checks, "_RACES", 3)
    monkeypatch.setattr(gpu_items, "_MATRIX", 64)
    monkeypatch.setattr(gpu_items, "_COPY", 1024)
    used = {"configuration": {"block_m": 32}, "registers": 168, "shared_bytes": 82944, "tiles_at_once": 2}
    monkeypatch.setattr(gpu_items, "resources", lambda *_: used)
