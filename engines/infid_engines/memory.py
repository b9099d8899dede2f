"""Memory of this process and of the machine, as Linux counts it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


def reset_peak_memory() -> None:
    """Let `peak_memory` count from now on; where the system forbids it, it goes on counting from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def peak_memory() -> int:
    """Return the largest resident memory of this process in bytes.

    Not getrusage: its maximum cannot be reset, and a child inherits its parent's.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")


def available_memory() -> int:
    """Return the bytes that the machine has free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
