from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cli_process import Cli, write_parity
from rich.cells import cell_len

from infid_engines.manifest import Manifest
from infid_engines.tensorrt_backend import TensorRTBackend
from infid_export.cli import inspect


def test_a_whole_folder(cli: Cli, small_folder: Path) -> None:
    code, out, err = cli("inspect", small_folder)
    assert code == 0
    assert err == "backend onnxruntime: chosen automatically\n"
    lines = [line.split() for line in out.splitlines()]
    graph = small_folder / "onnx/vae_decoder.onnx"
    assert ["vae_decoder", f"{graph.stat().st_size}", "B", "0.0", "M", "1", "18", "vae.safetensors"] in lines
    assert ["in", "latents", "float32", "1", "×", "4"] in lines
    assert ["onnx/vae.safetensors", "64", "B"] in lines
    assert "text_features.* (3 tensors)" in out
    assert "PASSED" in out
    assert "Problems" not in out


def test_as_json(cli: Cli, small_folder: Path) -> None:
    code, out, _ = cli("inspect", small_folder, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"folder", "manifest", "graphs", "parity", "problems"}
    assert found["graphs"] == {"vae_decoder": {"opset": 18, "operators": {"MatMul": 1}}}
    assert found["problems"] == {}


@pytest.mark.parametrize("width", [40, 200])
def test_it_fits_the_terminal(cli: Cli, small_folder: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(small_folder.parent)
    _, out, _ = cli("inspect", "engines")
    lines = out.splitlines()
    tables = [line for line in lines if not line.startswith(("engines:", "PASSED 30-step"))]
    assert max(map(cell_len, tables)) <= width
    assert "vae_decoder" in out


@pytest.mark.parametrize(
    ("damage", "flags", "problem"),
    [
        (lambda path: path.unlink(), (), "missing"),
        (lambda path: path.write_bytes(b"short"), (), "damaged: 5 bytes instead of 64"),
        (lambda path: path.write_bytes(b"x" * 64), ("--hash",), "has changed"),
    ],
    ids=["missing", "size", "hash"],
)
def test_damage_is_named(cli: Cli, small_folder: Path, damage: object, flags: tuple[str, ...], problem: str) -> None:
    damage(small_folder / "onnx/vae.safetensors")  # type: ignore[operator]
    code, out, _ = cli("inspect", small_folder, "--json", *flags)
    assert code == 1
    found = json.loads(out)["problems"]
    assert list(found) == ["onnx/vae.safetensors"]
    assert problem in found["onnx/vae.safetensors"]


def test_sizes_alone_do_not_see_a_changed_byte(cli: Cli, small_folder: Path) -> None:
    (small_folder / "onnx/vae.safetensors").write_bytes(b"x" * 64)
    assert cli("inspect", small_folder)[0] == 0


def test_an_engine_of_another_version_is_stale(cli: Cli, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(small_folder)
    ort, rtx = manifest.engines
    replace(manifest, engines=(ort, replace(rtx, tool_versions={"tensorrt_rtx": "1.3"}))).write(small_folder)
    monkeypatch.setattr(TensorRTBackend, "versions", lambda self: {"tensorrt_rtx": "1.7"})
    code, out, _ = cli("inspect", small_folder, "--json")
    assert code == 1
    assert json.loads(out)["problems"] == {rtx.file: "stale: built with tensorrt_rtx 1.3, here is tensorrt_rtx 1.7"}


def test_a_failed_or_missing_parity_is_a_problem(cli: Cli, small_folder: Path) -> None:
    write_parity(small_folder, rms_error=1.0)
    code, out, _ = cli("inspect", small_folder)
    assert code == 1
    assert "FAILED" in out
    (small_folder / "parity.json").unlink()
    code, out, _ = cli("inspect", small_folder, "--json")
    assert code == 1
    assert "parity.json" in json.loads(out)["problems"]


def test_without_onnx_the_folder_is_still_shown(cli: Cli, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(inspect, "find_spec", lambda name: None if name == "onnx" else find(name))
    code, out, err = cli("inspect", small_folder)
    assert code == 0
    assert "vae_decoder" in out
    assert "onnx is not installed" in err
    code, _, err = cli("inspect", small_folder / "onnx/vae_decoder.onnx")
    assert code == 1
    assert 'pip install "infid-export[export]"' in err


def test_one_graph(cli: Cli, small_folder: Path) -> None:
    path = small_folder / "onnx/vae_decoder.onnx"
    code, out, _ = cli("inspect", path)
    assert code == 0
    assert "opset 18, 1 nodes" in out
    assert ["vae.safetensors", "64", "B"] in [line.split() for line in out.splitlines()]
    (small_folder / "onnx/vae.safetensors").unlink()
    code, out, _ = cli("inspect", path, "--json")
    assert code == 1
    assert json.loads(out)["problems"] == {str(small_folder / "onnx/vae.safetensors"): "missing"}


def test_what_is_no_graph(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"not a graph at all")
    code, _, err = cli("inspect", path)
    assert code == 1
    assert "is not an ONNX file" in err


def test_what_is_no_engine_folder(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("inspect", tmp_path)
    assert code == 1
    assert "no manifest.json" in err


def test_ranges_and_free_dimensions_are_shown(cli: Cli, small_folder: Path) -> None:
    manifest = Manifest.load(small_folder)
    record = manifest.graphs["vae_decoder"]
    spec = replace(record.inputs[0], shape=([1, 2, 4], [0, 0, 0], 8))
    replace(manifest, graphs={"vae_decoder": replace(record, inputs=(spec,))}).write(small_folder)
    _, out, _ = cli("inspect", small_folder)
    assert ["in", "latents", "float32", "1–4", "×", "?", "×", "8"] in [line.split() for line in out.splitlines()]


def test_an_empty_file_is_not_a_graph(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    code, _, err = cli("inspect", tmp_path / "empty.onnx")
    assert code == 1
    assert "it has no nodes" in err


@pytest.mark.parametrize("name", ["a pipe", "/dev/full"])
def test_what_may_never_end_is_not_read(cli: Cli, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.name == "a pipe":
        os.mkfifo(path)
    code, _, err = cli("inspect", path)
    assert code == 1
    assert "it is not a plain file" in err
