"""Builds the C++ library for the tests."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_engines import DEPTH_K, DEPTH_T, MODEL, TOKENS

from infid_export.runtime.person import Person

LIBRARY = Path(__file__).parents[2] / "engines/cpp"
PACKAGES = "cmake g++ nlohmann-json3-dev libutf8proc-dev libpng-dev libjpeg-dev liblcms2-dev doctest-dev"
_HEADERS = ("nlohmann/json.hpp", "utf8proc.h", "png.h", "lcms2.h", "doctest/doctest.h")

# The library of the Python package: results can be equal bit for bit.
ONNXRUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))

Probe = Callable[..., subprocess.CompletedProcess[str]]


def built(place: Path, *options: str, target: str = "all") -> Path:
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
            for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2", "--target", target]):
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
            done.touch()
    return folder


def program(build: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run `infid`."""
    return subprocess.run([str(build / "infid"), *map(str, words)], capture_output=True, text=True, check=False)


def tiny_person(number: int = 0, **changes: Any) -> Person:
    """A person for the tiny engines."""
    random = np.random.default_rng(number)
    shapes = (2, TOKENS, DEPTH_T), (2, TOKENS, DEPTH_K), (2, TOKENS, DEPTH_K)
    tokens, keys, values = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return replace(Person(tokens, keys, values, MODEL), **changes)
