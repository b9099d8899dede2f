from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_process import Cli, write_parity
from onnx import TensorProto, helper

from infid_engines.errors import BackendUnavailableError
from infid_engines.manifest import EngineRecord, FileRecord, GraphRecord, Manifest, TensorSpec
from infid_engines.registry import get_backend
from infid_export.cli.main import run


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """A complete engine folder with one graph, small enough to be made by hand."""
    folder = tmp_path / "engines"
    (folder / "onnx").mkdir(parents=True)
    (folder / "engines/tensorrt_rtx-sm_89").mkdir(parents=True)
    graph = folder / "onnx/vae_decoder.onnx"
    _write_graph(graph, "vae.safetensors")
    engine = "engines/tensorrt_rtx-sm_89/vae_decoder.engine"
    (folder / engine).write_bytes(b"engine")
    files = {name: _record(folder / name) for name in ("onnx/vae_decoder.onnx", "onnx/vae.safetensors", engine)}
    spec = (TensorSpec("latents", "float32", (1, 4)),)
    outputs = tuple(TensorSpec(f"text_features.block.{i}", "float16", (1, 4 + i)) for i in range(3))
    weights = ("onnx/vae.safetensors",)
    record = GraphRecord("onnx/vae_decoder.onnx", _record(graph).sha256, "", {}, weights, 16, spec, outputs)
    try:
        versions = get_backend("tensorrt_rtx").versions()
    except BackendUnavailableError:
        versions = {"tensorrt_rtx": "1.7"}
    rtx = EngineRecord("vae_decoder", "tensorrt_rtx", "sm_89", engine, files[engine].sha256, 6, "", {}, {}, versions)
    ort = replace(rtx, backend="onnxruntime", target="cpu", file="onnx/vae_decoder.onnx")
    manifest = Manifest(
        infid_export="0.1.0", model={"name": "demo", "id": "0"}, options={}, precision="fp16", height=64, width=64,
        batch=1, people=1, identity_tokens=5, graphs={"vae_decoder": record}, engines=(ort, rtx), files=files,
        scheduler={}, defaults={}, faces={}, notes=("backend onnxruntime: chosen automatically",),
    )  # fmt: skip
    manifest.write(folder)
    write_parity(folder, rms_error=1e-4)
    return folder


def _record(path: Path) -> FileRecord:
    content = path.read_bytes()
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content), seconds=3.0, peak_bytes=10**9)


def _write_graph(path: Path, weights: str) -> None:
    """Write y = x W, with W in an external file."""
    value = np.ones((4, 4), np.float32)
    (path.parent / weights).write_bytes(value.tobytes())
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], value.tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", weights), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=entry)
    x = helper.make_tensor_value_info("latents", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["latents", "w"], ["image"])], "g", [x], [y], [tensor])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
