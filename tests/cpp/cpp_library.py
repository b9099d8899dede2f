"""Builds the C++ library for the tests."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

LIBRARY = Path(__file__).parents[2] / "engines/cpp"
PACKAGES = "cmake g++ nlohmann-json3-dev libutf8proc-dev libpng-dev libjpeg-dev doctest-dev"
_HEADERS = ("nlohmann/json.hpp", "utf8proc.h", "png.h", "doctest/doctest.h")

# The library of the Python package: results can be equal bit for bit.
ONNXRUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))

Probe = Callable[..., subprocess.CompletedProcess[str]]


def built(place: Path, *options: str) -> Path:
    """Configure and build the library with its program and tests, once for all workers, and return the build folder.

    The test is skipped where the system lacks a package.
    """
    missing = [tool for tool in ("cmake", "g++", "make") if shutil.which(tool) is None]
    missing += [header for header in _HEADERS if not (Path("/usr/include") / header).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is missing: apt-get install {PACKAGES}")
    place.mkdir(exist_ok=True)
    folder, done = place / "build", place / "done"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            configure = ["cmake", "-S", str(LIBRARY), "-B", str(folder), "-DINFID_WERROR=ON", *options]
            for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
            done.touch()
    return folder
