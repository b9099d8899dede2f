"""What the driver reports about the device: the energy it has used, and its memory in use."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Protocol

from infid_engines.device import CPU, Device
from infid_engines.gpu import pci_address

_NVML = "libnvidia-ml.so.1"
_RAPL = Path("/sys/class/powercap")


class Meter(Protocol):
    """A device's counters."""

    def joules(self) -> float | None:
        """Return the energy used so far, from any start; None if nothing counts it."""

    def memory(self) -> int | None:
        """Return the bytes of the device's own memory in use, by all processes; None without such memory."""


class GpuMeter:
    """An NVIDIA GPU, through the driver's management library (NVML).

    Args:
        index: its number in CUDA; NVML has other numbers, but the same PCI addresses.
    """

    def __init__(self, index: int = 0) -> None:
        self._library: Any = None
        self._device = ctypes.c_void_p()
        address = pci_address(index)
        try:
            library = ctypes.CDLL(_NVML)
        except OSError:
            return
        if address is None or library.nvmlInit_v2() != 0:
            return
        if library.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(self._device)) == 0:
            self._library = library

    def joules(self) -> float | None:
        """Return the energy since the driver was loaded; GPUs count it since Volta."""
        found = ctypes.c_ulonglong()
        if self._library is None:
            return None
        failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(found))
        return None if failed else found.value / 1e3

    def memory(self) -> int | None:
        """Return the bytes in use."""
        found = (ctypes.c_ulonglong * 3)()  # total, free, used
        if self._library is None:
            return None
        failed = self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(found))
        return None if failed else int(found[2])


class CpuMeter:
    """The processors, through Linux's RAPL counters; most systems let only root read them."""

    def joules(self) -> float | None:
        """Return the energy of all packages; the counters start again at 0 after about an hour of full load."""
        try:
            counters = [int((zone / "energy_uj").read_text()) for zone in _RAPL.glob("intel-rapl:[0-9]")]
        except (OSError, ValueError):
            return None
        return sum(counters) / 1e6 if counters else None

    def memory(self) -> None:
        """Return None: the process's memory is measured instead."""


def meter(device: str) -> Meter:
    """Return the meter of a device, such as `cpu` or `cuda:1`."""
    found = Device.parse(device)
    return CpuMeter() if found == CPU else GpuMeter(found.index)
