"""The machine, versions and commit of a measurement, in the same form in every document in benchmarks/results."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def measured_on(machine: str, packages: Sequence[str]) -> dict[str, Any]:
    """Return machine, Python, versions of packages, and commit.

    Args:
        machine: what it ran on, in words; if empty, the processor's name from the system.
        packages: names of distributions.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "machine": machine or platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "commit": commit.stdout.strip(),
    }
