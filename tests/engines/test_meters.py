"""The counters of the device, with a stand-in for the driver's library."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infid_engines import meters
from infid_engines.meters import CpuMeter, GpuMeter, meter


class Library:
    """NVML with one GPU: 12.5 J used, and 3 GB in use.

    Args:
        failing: the functions that return an error.
    """

    def __init__(self, *failing: str) -> None:
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name in self._failing:
                return 3
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_ulonglong))[0] = 12_500
            if name == "nvmlDeviceGetMemoryInfo":
                values = ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_ulonglong))
                values[0], values[1], values[2] = 8 * 10**9, 5 * 10**9, 3 * 10**9
            return 0

        return call


def on(monkeypatch: pytest.MonkeyPatch, library: Library) -> GpuMeter:
    monkeypatch.setattr(meters, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: library}))
    return GpuMeter()


def test_a_gpu_tells_its_energy_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on(monkeypatch, Library())
    assert (found.joules(), found.memory()) == (12.5, 3 * 10**9)


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlDeviceGetHandleByIndex_v2"])
def test_without_a_gpu_nothing_is_told(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    found = on(monkeypatch, Library(failing))
    assert (found.joules(), found.memory()) == (None, None)


def test_a_gpu_that_does_not_count_energy_still_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on(monkeypatch, Library("nvmlDeviceGetTotalEnergyConsumption"))
    assert (found.joules(), found.memory()) == (None, 3 * 10**9)


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_NVML", "no-such-library.so")
    found = meter("cuda")
    assert (found.joules(), found.memory()) == (None, None)


def test_a_processor_tells_the_energy_of_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_RAPL", tmp_path)
    found = meter("cpu")
    assert isinstance(found, CpuMeter)
    assert found.joules() is None
    for zone, micro in (("intel-rapl:0", "2000000"), ("intel-rapl:1", "500000"), ("intel-rapl:0:0", "9")):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{micro}\n")
    assert (found.joules(), found.memory()) == (2.5, None)
    (tmp_path / "intel-rapl:1/energy_uj").write_text("no number")
    assert found.joules() is None
