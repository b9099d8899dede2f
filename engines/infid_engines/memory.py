"""Memory of this process and of the machine, on Linux."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


def reset_peak_memory() -> None:
    """Restart `peak_memory`; if the system forbids it, the peak still counts from the start of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes.

    This is not from getrusage, whose maximum cannot be reset and is inherited from the parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")


def available_memory() -> int:
    """Return the memory in bytes that new processes can use, with that of cached files."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # Linux before 3.14
