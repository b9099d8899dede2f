from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_face_models import write_dot_detector, write_recognizer, write_scrfd

from infid_engines.errors import InputError
from infid_export.faces.detection import CenterFaceDetector
from infid_export.faces.onnx_start import expected_range
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer

FACE = np.random.default_rng(1).integers(0, 255, (112, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", ["N", 1])
def test_embedding_is_the_models_normalized(tmp_path: Path, batch: int | str) -> None:
    found = ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", batch=batch)).embed(FACE)
    cells = ((FACE.astype(np.float64) - 127.5) / 127.5).transpose(2, 0, 1).reshape(3, 4, 28, 4, 28).mean((2, 4))
    expected = cells.reshape(-1) @ np.random.default_rng(0).standard_normal((48, 512))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_another_width_is_accepted_if_the_identity_modules_want_it(tmp_path: Path) -> None:
    path = write_recognizer(tmp_path / "r.onnx", width=128)
    assert ArcFaceRecognizer(path, 128).embed(FACE).shape == (128,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 128}, r"returns \[\[1, 128\]\], not \[N, 512\]"),
        ({"side": 224}, r"224, 224.*not \[N, 3, 112, 112\]"),
        ({"batch": 4}, r"\[4, 3, 112, 112\].*not \[N, 3, 112, 112\]"),
        ({"dtype": np.float16}, r"float16.*not \[N, 3, 112, 112\] in fp32"),
    ],
    ids=["width", "side", "batch", "fp16"],
)
def test_other_models_are_rejected_when_opened(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", **options))


def test_missing_broken_and_other_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no model at"):
        ArcFaceRecognizer(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="not a usable ONNX model"):
        ArcFaceRecognizer(tmp_path / "text.onnx")
    with pytest.raises(InputError, match="returns"):
        ArcFaceRecognizer(write_scrfd(tmp_path / "det.onnx").rename(tmp_path / "other.onnx"), 10)


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_an_embedding_without_direction_is_rejected_when_opened(tmp_path: Path, fill: float) -> None:
    with pytest.raises(InputError, match=r"r\.onnx: The recognizer returned no usable embedding"):
        ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", fill=fill))


MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
IDENTITY = (np.ones(3), np.zeros(3))  # scale and bias of a batch normalization
HALF = np.full((1, 3, 1, 1), 127.5)
# A model's first operators, how it then expects its pixels, and whether it scales them to [−1, 1].
STARTS: dict[str, tuple[list[tuple], str, bool]] = {
    "nothing": ([], "signed", True),
    "mxnet": ([("Sub", 127.5), ("Mul", 1 / 127.5)], "raw", True),
    "mul-first": ([("Mul", 1 / 127.5), ("Sub", 1.0)], "raw", True),
    "add-div": ([("Add", -127.5), ("Div", 127.5)], "raw", True),
    "one-constant-a-channel": ([("Sub", HALF), ("Div", HALF)], "raw", True),
    "constant-nodes": ([("Sub", [127.5]), ("Mul", [1 / 127.5])], "raw", True),
    "after-others": ([("Cast", {"to": 1}), ("Identity",), ("Sub", 127.5), ("Div", 127.5)], "raw", True),
    "batch-normalization": (
        [("BatchNormalization", *IDENTITY, np.full(3, 127.5), np.full(3, 127.5**2), {"epsilon": 1e-5})], "raw", True
    ),
    "unit": ([("Sub", 0.5), ("Div", 0.5)], "unit", True),
    "statistics": ([("Sub", MEAN.reshape(1, 3, 1, 1)), ("Div", STD.reshape(1, 3, 1, 1))], "raw", False),
    "unit-statistics": (
        [("Sub", MEAN.reshape(1, 3, 1, 1) / 255), ("Div", STD.reshape(1, 3, 1, 1) / 255)], "unit", False
    ),
    "learned": ([("BatchNormalization", *IDENTITY, np.full(3, -0.1), np.full(3, 0.3))], "signed", False),
}  # fmt: skip


@pytest.mark.parametrize(("start", "pixels", "same"), STARTS.values(), ids=STARTS)
def test_pixels_are_scaled_once(tmp_path: Path, start: list[tuple], pixels: str, same: bool) -> None:
    found = ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", start=start))
    assert found.range == pixels
    plain = ArcFaceRecognizer(write_recognizer(tmp_path / "plain.onnx")).embed(FACE)
    assert np.allclose(found.embed(FACE), plain, atol=1e-4) == same


def test_channels_last_and_whole_pixels(tmp_path: Path) -> None:
    plain = ArcFaceRecognizer(write_recognizer(tmp_path / "plain.onnx")).embed(FACE)
    turn, scale = ("Transpose", {"perm": [0, 3, 1, 2]}), [("Sub", 127.5), ("Mul", 1 / 127.5)]
    last = write_recognizer(tmp_path / "last.onnx", start=[turn], channels_last=True)
    np.testing.assert_allclose(ArcFaceRecognizer(last).embed(FACE), plain, atol=1e-5)
    raw = write_recognizer(tmp_path / "raw.onnx", start=[turn, *scale], channels_last=True, batch=1)
    assert ArcFaceRecognizer(raw).range == "raw"
    whole = [("Cast", {"to": 1}), *scale]
    found = ArcFaceRecognizer(write_recognizer(tmp_path / "whole.onnx", start=whole, pixels=np.uint8))
    np.testing.assert_allclose(found.embed(FACE), plain, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"fill": 1.0},
        # scales its pixels after a nonlinear operator, so the scaling is not detected
        {"start": [("Pow", 1.0), ("Sub", 127.5), ("Mul", 1 / 127.5)]},
    ],
    ids=["constant", "scaled-twice"],
)
def test_a_recognizer_that_tells_nobody_apart_is_rejected(tmp_path: Path, options: dict) -> None:
    with pytest.raises(InputError, match=r"cannot tell two different faces apart: .* is (0\.99|1\.0)"):
        ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", **options))


@pytest.mark.parametrize("start", ["nothing", "mxnet"])
def test_embeddings_are_insightfaces(tmp_path: Path, start: str) -> None:
    arcface = pytest.importorskip("insightface.model_zoo.arcface_onnx", reason="lacks insightface")
    path = write_recognizer(tmp_path / "r.onnx", start=STARTS[start][0])
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = f"{node.op_type}_0"  # insightface relies on it
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs = arcface.ArcFaceONNX(str(path), session).get_feat(np.ascontiguousarray(FACE[:, :, ::-1]))[0]
    found = ArcFaceRecognizer(path).embed(FACE)
    np.testing.assert_allclose(found, theirs / np.linalg.norm(theirs), atol=1e-4)


def test_a_file_that_is_no_protobuf_is_no_onnx_model(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 9, b"\x3a\x05ab", bytes(range(256))):
        (tmp_path / "r.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="is not an ONNX model"):
            expected_range(tmp_path / "r.onnx", "face")


def test_reader_gives_the_identity_encoders_inputs(tmp_path: Path, centerface: Path, astronaut: np.ndarray) -> None:
    recognizer = ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx"))
    inputs = FaceReader(CenterFaceDetector(centerface), recognizer, 224).read(astronaut)
    assert inputs.face_crop.shape == (1, 3, 224, 224)
    assert inputs.face_crop.dtype == inputs.face_embedding.dtype == np.float32
    assert 0 <= inputs.face_crop.min() < inputs.face_crop.max() <= 1
    assert inputs.face_embedding.shape == (1, 512)
    assert np.linalg.norm(inputs.face_embedding) == pytest.approx(1, abs=1e-6)


def test_reader_reads_the_face_asked_for(tmp_path: Path, centerface: Path, astronaut: np.ndarray) -> None:
    recognizer = ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx"))
    reader = FaceReader(CenterFaceDetector(centerface), recognizer, 224)
    photo = np.zeros((512, 900, 3), np.uint8)
    photo[:, :512] = astronaut
    photo[:256, 600:856] = astronaut[::2, ::2] // 2  # smaller and darker
    large, same, small = (reader.read(photo, index).face_crop.mean() for index in (None, 0, 1))
    assert large == same
    assert small < 0.7 * large


def test_reader_rejects_a_photo_without_a_face(tmp_path: Path) -> None:
    detector = CenterFaceDetector(write_dot_detector(tmp_path / "d.onnx"))
    reader = FaceReader(detector, ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx")), 224)
    with pytest.raises(InputError, match=r"No face was found in the photo \(60 × 40\)"):
        reader.read(np.zeros((40, 60, 3), np.uint8))
