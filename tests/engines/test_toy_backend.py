"""CONTRIBUTING's recipe for a backend works: one class, one entry in the registry, and every part works with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_engines import DEPTH_K, DEPTH_T, MODEL, TOKENS, write_folder
from toy_backend import ToyBackend

from infid_engines import registry
from infid_engines.device import CPU
from infid_engines.errors import EngineFolderError, InputError
from infid_engines.manifest import EngineRecord, FileRecord, Manifest
from infid_export.cli import doctor
from infid_export.cli.main import run
from infid_export.runtime.engine_set import EngineSet
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

ENGINE = "engines/toy-cpu/text_encoder.engine"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "toy", ToyBackend())
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")  # builders run in separate processes


def build(folder: Path, *words: str) -> int:
    return run(["build", "-o", str(folder / "engines"), "--graph", "text_encoder", *words])


def test_it_builds_inspects_verifies_and_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "engines"
    assert build(tmp_path, "--backend", "toy") == 0
    manifest = Manifest.load(folder)
    assert [(engine.backend, engine.target, engine.file) for engine in manifest.engines] == [
        ("onnxruntime", "cpu", "onnx/text_encoder.onnx"),  # parity is measured on it
        ("toy", "cpu", ENGINE),
    ]
    (toy,) = (engine for engine in manifest.engines if engine.backend == "toy")
    assert (toy.flags, toy.tool_versions) == ({}, {"toy": "1.5"})

    capfd.readouterr()
    assert build(tmp_path, "--backend", "toy", "--json") == 0
    assert json.loads(capfd.readouterr().out)["made"] == {}
    assert run(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["problems"] == {}
    assert run(["verify", str(folder)]) == 0
    assert "PASSED" in capfd.readouterr().out

    ids = np.arange(2 * 77, dtype=np.int32).reshape(2, 77)
    found = {
        backend: EngineSet(folder, manifest, backend, None, CPU)["text_encoder"].run({"input_ids": ids})
        for backend in ("toy", "onnxruntime")
    }
    for name, expected in found["onnxruntime"].items():
        np.testing.assert_allclose(found["toy"][name], expected, rtol=1e-5, atol=1e-5)

    (folder / ENGINE).write_bytes(b"damaged")
    assert run(["inspect", str(folder)]) == 1
    with pytest.raises(EngineFolderError, match=r"text_encoder\.engine has 7 bytes"):
        EngineSet(folder, manifest, "toy", None, CPU)["text_encoder"]


def test_options_that_mean_nothing_to_it_are_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, "--backend", "toy", "--refit") == 1
    assert "--refit would have no effect: no engine of tensorrt or tensorrt_rtx is built" in capfd.readouterr().err
    assert build(tmp_path, "--backend", "toy", "--target", "sm_89") == 1
    assert "no engine of tensorrt or tensorrt_rtx is built" in capfd.readouterr().err


def test_auto_builds_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path, "--dry-run") == 0
    assert "backend toy: chosen automatically, it is installed (targets cpu)" in capfd.readouterr().err


def with_toy_engines(folder: Path) -> Path:
    """Add a toy engine of each graph to a tiny folder, whose graphs contain their weights."""
    manifest = Manifest.load(folder)
    engines: list[EngineRecord] = []
    files: dict[str, FileRecord] = {}
    for engine in manifest.engines:
        name = f"engines/toy-cpu/{engine.graph}.engine"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / engine.file, folder / name)
        engines.append(replace(engine, backend="toy", file=name))
        files[name] = manifest.files[engine.file]
    replace(manifest, engines=(*manifest.engines, *engines), files={**manifest.files, **files}).write(folder)
    return folder


def test_auto_generates_with_the_fastest(tmp_path: Path) -> None:
    folder = with_toy_engines(write_folder(tmp_path / "engines"))
    random = np.random.default_rng(7)
    tensors = [random.standard_normal((2, TOKENS, depth)).astype(np.float32) for depth in (DEPTH_T, DEPTH_K, DEPTH_K)]
    person = Person(*tensors, MODEL, "Eileen")
    pictures = {}
    for backend in ("auto", "onnxruntime"):
        with Pipeline.load(folder, backend) as pipe:
            assert pipe.backend == {"auto": "toy"}.get(backend, backend)
            pictures[backend] = np.asarray(pipe.generate("a", person, seed=1, steps=2)[0])
    np.testing.assert_array_equal(pictures["auto"], pictures["onnxruntime"])
    with pytest.raises(InputError, match="has no toy engines for 'cuda', only for cpu"):
        Pipeline.load(folder, "toy", "cuda")


def test_doctor_knows_its_library(capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor.libraries()["toy"] == {"toy-library": "1.5"}
    run(["doctor"])
    assert ["toy-library", "missing", ">=", "1.5", "infid-export[toy]"] in [
        line.split() for line in capfd.readouterr().out.splitlines()
    ]
