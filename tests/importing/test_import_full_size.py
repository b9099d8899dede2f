"""Files of the true sizes, with random weights: what an import needs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_layouts import SDXL, adapter, write_adapter
from safetensors import safe_open

from infid_export.model.config import read_config

MOST_MEMORY, MOST_SECONDS = 4e9, 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "bytes_at_least", "tensors"),
    [
        ("faceid-plusv2", "ip-adapter-faceid-plusv2_sdxl.bin", 1.48e9, 56 + 140 + 140 * 8),
        ("ip-adapter-plus", "ip-adapter-plus_sdxl_vit-h.safetensors", 0.84e9, 51 + 140),
    ],
)
def test_a_file_of_the_true_size(
    family: str, name: str, bytes_at_least: float, tensors: int, tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    source = write_adapter(tmp_path / name, adapter(family, SDXL, torch.float16))
    assert source.stat().st_size > bytes_at_least
    target = tmp_path / "identity.safetensors"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "infid_export", "import", str(source), "-o", str(target)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen(command, env=environment) as process:
        peak = _peak(process)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record_property("figures", {"peak_bytes": peak, "processor_seconds": seconds})
    assert peak <= MOST_MEMORY
    assert seconds <= MOST_SECONDS  # of the processor: how long a disk takes is not ours
    assert read_config(target).family == family
    with safe_open(target, framework="pt") as file:
        assert len(file.keys()) == tensors
        assert file.get_slice(next(iter(file.keys()))).get_dtype() == "F16"


def _peak(process: subprocess.Popen[bytes]) -> int:
    """Return the most resident memory of a process and its children together, mapped files included."""
    most = 0
    while process.poll() is None:
        most = max(most, sum(_resident(pid) for pid in (process.pid, *_children(process.pid))))
        time.sleep(0.05)
    return most


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
