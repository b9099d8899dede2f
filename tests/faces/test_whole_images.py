"""What is read of a photo besides a face: the whole image, a box, and embeddings of another kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image
from small_face_models import write_dot_detector, write_recognizer

from infid_engines.errors import InputError
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align
from infid_export.faces.detection import CenterFaceDetector
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.faces.reference import boxed, center_crop, checked_reference

SIZES = [(512, 512), (300, 517), (517, 300), (224, 224), (224, 300), (100, 97), (1, 5), (740, 37)]
# newer versions have one that computes with Pillow, like the one of older versions that weights were trained with
CLIPImageProcessor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_crop_is_that_of_clips_processor(astronaut: np.ndarray, width: int, height: int) -> None:
    photo = np.asarray(Image.fromarray(astronaut).resize((width, height)))
    processor = CLIPImageProcessor(do_normalize=False)
    expected = processor(Image.fromarray(photo), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = center_crop(photo, 224)
    assert found.shape == (224, 224, 3)
    assert np.abs(found / 255 - expected).max() <= 1e-6


def test_a_very_long_photo_takes_little_memory() -> None:
    photo = np.zeros((1, 2_000_000, 3), np.uint8)
    assert center_crop(photo, 224).shape == (224, 224, 3)  # scaled as a whole it would have 300 GB


def test_a_box_is_cut_out(astronaut: np.ndarray) -> None:
    np.testing.assert_array_equal(boxed(astronaut, (10, 20, 30, 40)), astronaut[20:60, 10:40])
    for box in ((500, 0, 13, 5), (0, 500, 5, 13)):
        with pytest.raises(InputError, match=r"is not inside the photo \(512 × 512\)"):
            boxed(astronaut, box)


@pytest.mark.parametrize(
    "given", ["half", "", 3, (1, 2, 3), (0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 1.5, 5), (True, 0, 5, 5), ["whole"]]
)
def test_what_is_no_reference_is_named(given: object) -> None:
    with pytest.raises(InputError, match=r"There is no reference|is no box in a photo") as error:
        checked_reference(given)
    assert "left, top, width and height" in error.value.fix


@pytest.fixture
def models(tmp_path: Path) -> tuple[CenterFaceDetector, ArcFaceRecognizer]:
    return (
        CenterFaceDetector(write_dot_detector(tmp_path / "d.onnx")),
        ArcFaceRecognizer(write_recognizer(tmp_path / "r.onnx")),
    )


@pytest.fixture
def photo(astronaut: np.ndarray) -> np.ndarray:
    photo = astronaut[:320, :400] // 2
    photo[160:164, 200:204] = 255
    return photo


def test_a_whole_image_and_a_box_have_no_face(models: tuple, photo: np.ndarray) -> None:
    reader = FaceReader(*models, 224)
    whole, box = reader.read(photo, reference="whole"), reader.read(photo, reference=(40, 50, 100, 200))
    for found, pixels in ((whole, photo), (box, photo[50:250, 40:140])):
        np.testing.assert_array_equal(found.face_crop[0].transpose(1, 2, 0) * 255, center_crop(pixels, 224))
        np.testing.assert_array_equal(found.face_embedding, np.zeros((1, 512), np.float32))
        assert found.taken is None
    assert reader.read(photo).taken is not None


def test_images_alone_need_no_face_models(photo: np.ndarray) -> None:
    reader = FaceReader(None, None, 224, crop="whole")
    found = reader.read(photo)
    np.testing.assert_array_equal(found.face_crop[0].transpose(1, 2, 0) * 255, center_crop(photo, 224))
    assert found.face_embedding is None
    with pytest.raises(InputError, match="read whole images, and no face is searched"):
        reader.read(photo, reference="face")
    with pytest.raises(InputError, match="A face index was given, but no face is searched"):
        reader.read(photo, face_index=0)


def test_faces_alone_are_not_read_of_whole_images(models: tuple, photo: np.ndarray) -> None:
    reader = FaceReader(*models, None)
    found = reader.read(photo)
    assert found.face_crop.shape == (1, 3, 112, 112)  # to show what was taken
    for reference in ("whole", (0, 0, 50, 50)):
        with pytest.raises(InputError, match="read a face only, so they cannot see a whole image or a box"):
            reader.read(photo, reference=reference)


def test_the_crop_of_a_face_is_the_configured_one(models: tuple, photo: np.ndarray) -> None:
    portrait, aligned, whole = (
        FaceReader(*models, 224, crop=crop).read(photo) for crop in ("portrait", "aligned", "whole")
    )
    pixels = [each.face_crop[0].transpose(1, 2, 0) * 255 for each in (portrait, aligned, whole)]
    marks = aligned.taken.face.landmarks
    np.testing.assert_array_equal(pixels[1], align(photo, marks, ARCFACE_TEMPLATE, 224))
    np.testing.assert_array_equal(pixels[2], center_crop(photo, 224))
    assert np.abs(pixels[0] - pixels[1]).mean() > 5
    np.testing.assert_array_equal(portrait.face_embedding, whole.face_embedding)


def test_a_raw_embedding_has_the_recognizers_length(models: tuple, photo: np.ndarray) -> None:
    normalized, raw = (FaceReader(*models, 224, normalized=each).read(photo).face_embedding for each in (True, False))
    length = np.linalg.norm(raw)
    assert np.linalg.norm(normalized) == pytest.approx(1, abs=1e-6)
    assert length != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(raw / length, normalized, atol=1e-6)


def test_inputs_that_are_missing_are_named(photo: np.ndarray) -> None:
    inputs = FaceReader(None, None, 224, crop="whole").read(photo)
    assert list(inputs.arrays(["face_crop"])) == ["face_crop"]
    with pytest.raises(InputError, match="The face has no face_embedding"):
        inputs.arrays(["face_crop", "face_embedding"])
