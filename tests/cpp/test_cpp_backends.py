"""Devices, targets and inputs, with Python's sentences. A library of a few lines stands in for CUDA's driver."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_library import LIBRARY, Probe

from infid_engines import gpu, processor, registry
from infid_engines.backends import CheckedInputs
from infid_engines.device import requested_device
from infid_engines.errors import InfidError
from infid_engines.manifest import TensorSpec
from infid_engines.registry import get_backend

# Its GPUs are those of the variable FAKE_GPUS, such as "90 89".
DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return getenv("FAKE_GPUS") ? 0 : 100; }
int cuDeviceGetCount(int* count) { *count = (strlen(getenv("FAKE_GPUS")) + 1) / 3; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = getenv("FAKE_GPUS")[3 * device + attribute - 75] - '0';
  return 0;
}
"""
MACHINES = [(), ("sm_90",), ("sm_90", "sm_89")]

Outcome = tuple[str, ...]
Machine = Callable[[tuple[str, ...]], None]


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def machine(fake_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Gives this process and the programs that it starts other GPUs."""

    def give(gpus: tuple[str, ...]) -> None:
        monkeypatch.setattr(gpu, "architectures", lambda: gpus)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_driver))
        monkeypatch.delenv("FAKE_GPUS", raising=False)
        if gpus:
            monkeypatch.setenv("FAKE_GPUS", " ".join(name.removeprefix("sm_") for name in gpus))

    return give


def python_outcome(call: Callable[[], object]) -> Outcome:
    """The text of a result, or the problem and the fix."""
    try:
        return (str(call()),)
    except InfidError as error:
        return error.problem, error.fix


def cpp_outcome(finished: subprocess.CompletedProcess[str]) -> Outcome:
    assert finished.returncode in (0, 1), finished.stderr
    return tuple((finished.stderr if finished.returncode else finished.stdout).splitlines())


@pytest.mark.parametrize("gpus", MACHINES)
@pytest.mark.parametrize(
    "text",
    ["auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "cuda:9999", "sm_89", "sm_", "sm_x", "cpu-avx2", "cpu-",
     "cpu-ä_٣", "cpu-→", "cpu-a b", "", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:1.0", "cuda:٣",
     "cuda: 1", "cuda:99999", "cuda1", "cpu:0", "it's", 'a"b', "x" * 100],
)  # fmt: skip
def test_a_device_is_read(text: str, gpus: tuple[str, ...], machine: Machine, cpp_probe: Probe) -> None:
    machine(gpus)
    assert cpp_outcome(cpp_probe("device", text)) == python_outcome(lambda: requested_device(text))


@pytest.mark.parametrize("gpus", MACHINES)
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "cuda:2", "sm_89", "sm_75", "gpu"])
@pytest.mark.parametrize("targets", [(), ("sm_89",), ("sm_80", "sm_90")])
def test_the_target_of_a_gpu_backend_is_chosen(
    device: str, targets: tuple[str, ...], gpus: tuple[str, ...], machine: Machine, cpp_probe: Probe
) -> None:
    machine(gpus)

    def choose() -> str:
        return "{} {}".format(*get_backend("tensorrt").choose_target(device, targets))

    assert cpp_outcome(cpp_probe("choose_gpu", device, *targets)) == python_outcome(choose)


SPECS = (TensorSpec("x", "float32", (2, 3)), TensorSpec("y", "float16", ([1, 4, 16], 3)), TensorSpec("b", "int32", ()))
GOOD: dict[str, Any] = {"x": ("float32", (2, 3)), "y": ("float16", (16, 3)), "b": ("int32", ())}


@pytest.mark.parametrize(
    "change",
    [{}, {"x": None}, {"x": None, "b": None}, {"z": ("int64", (1,))}, {"z": ("int8", ()), "a": ("int8", ()), "x": None},
     {"x": ("float32", (2, 4))}, {"x": ("float32", (2, 3, 1))}, {"x": ("float16", (2, 3))}, {"b": ("int32", (1,))},
     {"y": ("float16", (0, 3))}, {"y": ("float16", (1, 3))}, {"y": ("float16", (17, 3))}, {"y": ("int8", (2,))}],
    ids=str,
)  # fmt: skip
def test_inputs_are_checked(change: dict[str, Any], cpp_probe: Probe) -> None:
    given = {name: each for name, each in {**GOOD, **change}.items() if each is not None}
    arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in given.items()}
    expected = python_outcome(lambda: CheckedInputs({spec.name: spec for spec in SPECS}).check(arrays))
    specs = json.dumps([{"name": spec.name, "dtype": spec.dtype, "shape": spec.shape} for spec in SPECS])
    views = json.dumps([{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in given.items()])
    found = cpp_outcome(cpp_probe("inputs", specs, views))
    assert (found or ("None",)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "flags\t\t: fpu sse4_2", "processor : 0\nflags\t\t: fpu avx2 fma f16c\nflags : none",
     "flags: avx2 fma f16c avx512f avx512dq avx512bw avx512vl avx512_vnni", "flags : avx2 avx512f",
     "flags too : avx2 fma f16c", "flags : avx2 fma f16c amx_tile amx_bf16 amx_int8"],
)  # fmt: skip
def test_a_processor_is_named_by_its_instructions(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpp_probe: Probe
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    target = processor.cpu_target()
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    expected = processor.instruction_sets.__wrapped__()
    assert cpp_outcome(cpp_probe("processor", tmp_path / "cpuinfo")) == (*expected, target)


def test_the_backends_are_in_the_order_of_python(cpp_probe: Probe) -> None:
    expected = [f"{backend.name} {backend.rank}" for backend in registry.fastest_first()]
    assert list(cpp_outcome(cpp_probe("backends"))) == expected


@pytest.mark.parametrize(
    ("backend", "title", "option"),
    [("tensorrt", "TensorRT", "INFID_TENSORRT_ROOT"), ("tensorrt_rtx", "TensorRT-RTX", "INFID_TENSORRT_RTX_ROOT"),
     ("aotinductor", "AOTInductor", "INFID_TORCH")],
)  # fmt: skip
def test_a_backend_that_was_left_out_says_so(backend: str, title: str, option: str, cpp_probe: Probe) -> None:
    for call in (("library", backend), ("choose", backend, "auto", "sm_90")):
        problem, fix = cpp_outcome(cpp_probe(*call))
        assert problem == f"This libinfid was built without {title}."
        assert f"-D{option}=" in fix


def test_tensorrt_rtx_runs_on_the_gpus_that_it_names() -> None:
    pytest.importorskip("tensorrt_rtx")
    source = (LIBRARY / "source/backends/tensorrt/tensorrt_backend.cpp").read_text()
    assert tuple(re.findall(r'"(sm_\d+)"', source)) == get_backend("tensorrt_rtx").targets()  # type: ignore[attr-defined]
