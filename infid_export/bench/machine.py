"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infid_engines.gpu import find_gpu
from infid_engines.registry import BACKENDS


def machine_facts() -> dict[str, Any]:
    """Return the processor, memory, GPU and Python of this machine."""
    gpu = find_gpu()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": [] if gpu is None else list(gpu.names),
        "driver": None if gpu is None else gpu.driver,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def where(document: Mapping[str, Any]) -> str:
    """Return the processor or the GPU that a document from `bench` was measured on."""
    machine, device = document["machine"], document["device"]
    if device == "cpu":
        return str(machine["processor"])
    gpus = ", ".join(machine["gpus"])
    return gpus if device == "cuda" else f"{device} of {gpus}"


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that speed depends on."""
    engines = (name for backend in BACKENDS.values() for extra in backend.extras for name in extra.libraries)
    found = {}
    for name in ("numpy", *engines, "torch", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
