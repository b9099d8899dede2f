"""What the numbers depend on: card, driver, versions and source, and whether two results can be combined."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import torch
import triton

from benchmarks.provenance import RESULTS, ROOT
from benchmarks.suite.bench import Bench, Result

_SOURCES = ("benchmarks", "kernels", "engines/infid_engines", "infid_export")  # what is measured, and what measures
_LOAD_SECONDS = 1.5  # of work while the clocks are read; starting nvidia-smi may take 1 s
_READINGS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "power.limit")


def describe(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Return what the numbers depend on.

    Args:
        device: the device to measure on.
        commit: recorded if given, for use without a repository; otherwise git is asked.
    """
    return {
        "gpu": _card(device) if device.type == "cuda" else _processor(),
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit or _git("rev-parse", "HEAD") or "unknown",
        "changed_files": _git("status", "--porcelain", "--untracked-files=no"),
        "sources": sources(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def _card(device: torch.device) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(device)
    asked = ("driver_version", "power.limit")
    return {
        "name": card.name, "uuid": f"GPU-{card.uuid}", "architecture": f"sm_{card.major}{card.minor}",
        "sms": card.multi_processor_count, "memory_bytes": card.total_memory,
        "l2_bytes": card.L2_cache_size, **_query(device, asked),
    }  # fmt: skip


def _processor() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    return {"name": f"{name}, Triton's interpreter", "uuid": platform.node(), "architecture": platform.machine()}


def _query(device: torch.device, fields: tuple[str, ...]) -> dict[str, str]:
    uuid = torch.cuda.get_device_properties(device).uuid
    answer = _output("nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    return dict(zip(fields, (answer or "").split(", "), strict=False)) if answer else {}


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str | None:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def sources() -> str:
    """Return a hash of the source files that decide what is measured; it needs no repository."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".json") and RESULTS not in path.parents:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def clocks(bench: Bench) -> Result:
    """Read clocks, temperature and power from the driver while the card is busy; nothing is set."""
    if not bench.on_gpu:
        return {"unavailable": "there is no GPU to read clocks from"}
    a = torch.randn(8192, 8192, device=bench.device).half()
    each = bench.time_long(lambda: a @ a, samples=5).median * 1e-3
    for _ in range(int(_LOAD_SECONDS / each)):
        a @ a  # only launched: the driver is asked while it runs
    readings = _query(bench.device, _READINGS)
    bench.synchronize()
    return readings or {"unavailable": "nvidia-smi did not answer"}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return why results cannot be continued, one sentence per reason; empty if they can.

    Args:
        before: the document to continue.
        now: the document of this run.
    """
    was, card = before["gpu"], now["gpu"]
    found = []
    if was.get("uuid") != card.get("uuid"):
        found.append(
            f"It was measured on {was['name']} ({was.get('uuid')}), and this is {card['name']} ({card.get('uuid')}): "
            "times of two cards cannot be mixed."
        )
    names = {
        "model": "model", "torch": "torch", "triton": "triton", "cuda": "CUDA", "commit": "commit",
        "changed_files": "list of changed files", "sources": "source code", "quick": "value of --quick",
    }  # fmt: skip
    for name, words in names.items():
        if before.get(name) != now[name]:
            found.append(f"It has another {words}: {_short(before.get(name))}, here {_short(now[name])}.")
    if was.get("driver_version") != card.get("driver_version"):
        found.append(f"It has another driver: {was.get('driver_version')}, here {card.get('driver_version')}.")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
