from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from face_models import write_dot_detector, write_recognizer, write_scrfd

from infid_engines.errors import InputError
from infid_export.faces.detection import CenterFaceDetector
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer

FACE = np.random.default_rng(1).integers(0, 255, (112, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", ["N", 1])
def test_embedding_is_the_models_normalised(tmp_path: Path, batch: int | str) -> None:
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
        ({"width": 128}, r"gives \[\[1, 128\]\], not \[N, 512\]"),
        ({"side": 224}, r"224, 224.*not \[N, 3, 112, 112\]"),
        ({"batch": 4}, r"\[4, 3, 112, 112\].*not \[N, 3, 112, 112\]"),
        ({"dtype": np.float16}, r"float16.*not \[N, 3, 112, 112\] in fp32"),
    ],
    ids=["width", "side", "batch", "fp16"],
)
def test_other_models_are_refused_when_opened(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", **options))


def test_missing_broken_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no model at"):
        ArcFaceRecognizer(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="not a usable ONNX model"):
        ArcFaceRecognizer(tmp_path / "text.onnx")
    with pytest.raises(InputError, match="gives"):
        ArcFaceRecognizer(write_scrfd(tmp_path / "det.onnx").rename(tmp_path / "other.onnx"), 10)


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_an_embedding_without_direction_is_refused(tmp_path: Path, fill: float) -> None:
    with pytest.raises(InputError, match="no usable embedding"):
        ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx", fill=fill)).embed(FACE)


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


def test_reader_refuses_a_photo_without_a_face(tmp_path: Path) -> None:
    detector = CenterFaceDetector(write_dot_detector(tmp_path / "d.onnx"))
    reader = FaceReader(detector, ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx")), 224)
    with pytest.raises(InputError, match=r"No face was found in the photo \(60 × 40\)"):
        reader.read(np.zeros((40, 60, 3), np.uint8))
