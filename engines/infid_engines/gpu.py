"""The GPUs of this machine, as `nvidia-smi` reports them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows


@dataclass(frozen=True)
class Gpu:
    """The GPUs, as reported by the driver.

    Args:
        names: one per GPU, with its architecture.
        driver: version of the driver.
        cuda: newest CUDA that the driver supports, (major, minor).
    """

    names: tuple[str, ...]
    driver: str
    cuda: tuple[int, int]


def find_gpu() -> Gpu | None:
    """Return the GPUs that nvidia-smi reports; None without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    listed, header = _output_of(query), _output_of(["nvidia-smi"])
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
    rows = [row for row in rows if len(row) == 3]
    cuda = re.search(r"CUDA[A-Za-z ]*Version:\s*(\d+)\.(\d+)", header)
    if not rows or cuda is None:
        return None
    names = tuple(f"{name} (sm_{capability.replace('.', '')})" for name, capability, _ in rows)
    return Gpu(names, rows[0][2], (int(cuda[1]), int(cuda[2])))


def has_gpu() -> bool:
    """Return whether there is an NVIDIA driver, without asking it."""
    return any(path.exists() for path in _DEVICES)


def free_memory() -> int | None:
    """Return the free memory of the first GPU in bytes; None without one."""
    listed = _output_of(["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]) if has_gpu() else ""
    found = re.match(r"\d+", listed)
    return None if found is None else int(found[0]) << 20


@cache
def present_architecture() -> str | None:
    """Return the architecture of the first GPU as `sm_…`; None without one."""
    gpu = find_gpu() if has_gpu() else None
    return None if gpu is None else gpu.names[0].rpartition("(")[2].rstrip(")")


def _output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
