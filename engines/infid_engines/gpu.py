"""The GPUs of this machine, as `nvidia-smi` reports them, and as CUDA numbers them.

The two differ: CUDA puts the fastest first, and CUDA_VISIBLE_DEVICES chooses among them.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infid_engines.errors import BackendUnavailableError

_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows
_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


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


def architectures() -> tuple[str, ...]:
    """Return the architecture of each GPU that CUDA finds, in its order, as `sm_…`."""
    library, found = _driver(), []
    for index in range(_count(library)):
        device, major, minor = (ctypes.c_int() for _ in range(3))
        library.cuDeviceGet(ctypes.byref(device), index)
        for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found.append(f"sm_{major.value}{minor.value}")
    return tuple(found)


def present_architecture(index: int = 0) -> str | None:
    """Return the architecture of a GPU by its number in CUDA, as `sm_…`; None without one."""
    return dict(enumerate(architectures())).get(index)


def pci_address(index: int) -> bytes | None:
    """Return the PCI address of a GPU by its number in CUDA, which other libraries know it by; None without one."""
    library, device, address = _driver(), ctypes.c_int(), ctypes.create_string_buffer(32)
    if index >= _count(library):
        return None
    library.cuDeviceGet(ctypes.byref(device), index)
    failed = library.cuDeviceGetPCIBusId(address, len(address), device)
    return None if failed else address.value


def require_gpu(index: int) -> None:
    """Reject the number of a GPU that CUDA does not find.

    Raises:
        BackendUnavailableError: the message says how many there are.
    """
    count = len(architectures())
    if index < count:
        return
    raise BackendUnavailableError(
        f"There is no cuda:{index}: CUDA finds {count or 'no'} GPU{'' if count == 1 else 's'} on this machine.",
        fix=f"Use cuda:{count - 1} or lower; CUDA_VISIBLE_DEVICES chooses among them."
        if count
        else "Check the driver with `infid-export doctor`, or use the CPU.",
    )


def _driver() -> Any:
    """Return CUDA's driver; None without a driver or a GPU."""
    try:
        library = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    return None if library.cuInit(0) else library


def _count(library: Any) -> int:
    count = ctypes.c_int()
    if library is not None:
        library.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
