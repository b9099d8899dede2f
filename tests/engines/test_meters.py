"""The counters of the device, with stand-ins for the driver's libraries."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infid_engines import meters
from infid_engines.device import Device
from infid_engines.meters import CpuMeter, Meter, meter


class Library:
    """NVML, whose GPU at any address has used 12.5 J, and 3 GB of it are in use.

    Args:
        failing: the functions that return an error.
    """

    def __init__(self, *failing: str) -> None:
        self._failing = failing
        self.address = b""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name in self._failing:
                return 3
            if name == "nvmlDeviceGetHandleByPciBusId_v2":
                self.address = arguments[0]
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_ulonglong))[0] = 12_500
            if name == "nvmlDeviceGetMemoryInfo":
                values = ctypes.cast(arguments[1], ctypes.POINTER(ctypes.c_ulonglong))
                values[0], values[1], values[2] = 8 * 10**9, 5 * 10**9, 3 * 10**9
            return 0

        return call


def on(monkeypatch: pytest.MonkeyPatch, library: Library, index: int = 0) -> Meter:
    monkeypatch.setattr(meters, "pci_address", {0: b"0000:20:00.0", 1: b"0000:10:00.0"}.get)
    monkeypatch.setattr(meters, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": lambda name: library}))
    return meter(str(Device("cuda", index)))


def test_a_gpu_tells_its_energy_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on(monkeypatch, Library())
    assert (found.joules(), found.memory()) == (12.5, 3 * 10**9)


@pytest.mark.parametrize(("index", "address"), [(0, b"0000:20:00.0"), (1, b"0000:10:00.0")])
def test_a_gpu_is_found_by_its_address(monkeypatch: pytest.MonkeyPatch, index: int, address: bytes) -> None:
    library = Library()
    assert on(monkeypatch, library, index).joules() == 12.5
    assert library.address == address
    assert on(monkeypatch, Library(), 2).joules() is None


@pytest.mark.parametrize("failing", ["nvmlInit_v2", "nvmlDeviceGetHandleByPciBusId_v2"])
def test_without_a_gpu_nothing_is_told(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    found = on(monkeypatch, Library(failing))
    assert (found.joules(), found.memory()) == (None, None)


def test_a_gpu_that_does_not_count_energy_still_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on(monkeypatch, Library("nvmlDeviceGetTotalEnergyConsumption"))
    assert (found.joules(), found.memory()) == (None, 3 * 10**9)


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "_NVML", "no-such-library.so")
    monkeypatch.setattr(meters, "pci_address", lambda index: b"0000:20:00.0")
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
