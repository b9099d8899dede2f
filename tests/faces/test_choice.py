from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from infid_engines.errors import InputError
from infid_export.export.face_models import write_shipped
from infid_export.faces.alignment import ARCFACE_TEMPLATE
from infid_export.faces.choice import MIN_SCORE, TakenFace, choose_face, doubt, plausible_faces
from infid_export.faces.detection import CenterFaceDetector, Face
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import portrait

SIZE = (640, 480)
PHOTOS = Path(skimage.data.__file__).parent
NO_FACES = ("coffee.png", "coins.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png", "grass.png",
            "ihc.png", "chelsea.png", "page.png", "text.png", "logo.png")  # fmt: skip


def face(score: float = 0.9, side: float = 100, left: float = 200, top: float = 150) -> Face:
    """A face with ArcFace's proportions whose crop has the given side."""
    return Face(np.array([left, top, left + side, top + side]), score, ARCFACE_TEMPLATE * side + [left, top])


def changed(landmarks: np.ndarray) -> Face:
    return Face(np.array([200, 150, 300, 250]), 0.9, landmarks + np.array([200, 150]))


MARKS = ARCFACE_TEMPLATE * 100
CENTER = MARKS.mean(0)
CANNOT_BE: dict[str, tuple[Face, str]] = {
    "score": (face(MIN_SCORE - 0.01), "score is 0.59, but at least 0.60"),
    "no-score": (face(float("nan")), "not finite"),
    "no-place": (changed(MARKS * np.nan), "not finite"),
    "upside-down": (changed(2 * CENTER - MARKS), "mouth is not below its eyes"),
    "eyes-exchanged": (changed(MARKS[[1, 0, 2, 3, 4]]), "not placed as in a face"),
    "mirrored": (changed(MARKS * [-1, 1]), "not placed as in a face"),
    "one-point": (changed(MARKS * 0 + CENTER), "mouth is not below its eyes"),
    "flat": (changed((MARKS - CENTER) * [1, 0.1]), "not placed as in a face"),
    "narrow": (changed((MARKS - CENTER) * [0.1, 1]), "not placed as in a face"),
    "nose-on-the-brow": (changed(MARKS - [[0, 0], [0, 0], [0, 60], [0, 0], [0, 0]]), "not placed as in a face"),
    "outside-left": (face(left=-60), "a part of it is outside"),
    "outside-below": (face(top=440), "a part of it is outside"),
}


@pytest.mark.parametrize(("found", "reason"), CANNOT_BE.values(), ids=CANNOT_BE)
def test_what_cannot_be_a_face_is_rejected_with_the_reason(found: Face, reason: str) -> None:
    assert reason in doubt(found, SIZE)
    with pytest.raises(InputError, match=rf"^No face was found in the photo \(640 × 480\): .*1 detection.* {reason}"):
        choose_face([found], photo_size=SIZE)
    with pytest.raises(InputError, match="so there is no face 1"):  # nor can it be chosen
        choose_face([face(), found], 1, photo_size=SIZE)


@pytest.mark.parametrize("degrees", [-60, -20, 0, 45])
@pytest.mark.parametrize("yaw", [0.5, 0.75, 1.0])
def test_turned_and_tilted_faces_can_be_one(degrees: float, yaw: float) -> None:
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert doubt(changed((MARKS - CENTER) * [yaw, 1] @ rotation.T + CENTER), SIZE) == ""


def test_size_does_not_beat_a_far_better_score() -> None:
    rocket, person_ = face(0.62, side=150), face(0.95, side=80, left=20)
    assert choose_face([rocket, person_]) is person_
    assert choose_face([rocket, person_], 0) is person_
    assert choose_face([rocket, person_], 1) is rocket
    near = face(0.85, side=150)
    assert choose_face([near, person_]) is near


def test_all_of_a_kind_come_largest_first() -> None:
    sizes = [40, 100, 70]
    found = plausible_faces([face(0.9, side=side) for side in sizes])
    assert [round(each.area) for each in found] == [side**2 for side in sorted(sizes, reverse=True)]


def test_what_was_taken_is_said_in_one_sentence() -> None:
    faces = (face(0.95), face(0.9, side=50, left=20))
    assert str(TakenFace("a.jpg", 0, faces[:1])) == "a.jpg: 1 face found, score 0.95, 31 pixels between the eyes"
    assert str(TakenFace("a.jpg", 1, faces)) == (
        "a.jpg: 2 faces found, used 1 at (20, 150) of 50 × 50 pixels (score 0.90, 16 pixels between the eyes); "
        "others to choose by face index: 0 at (200, 150) of 100 × 100 pixels with score 0.95"
    )
    assert "and 4 more" in str(TakenFace("crowd.jpg", 0, faces[:1] * 10))
    document = json.loads(json.dumps(TakenFace("a.jpg", 1, faces).to_json()))
    assert document == {
        "photo": "a.jpg", "found": 2, "taken": 1,
        "faces": [{"score": 0.95, "box": [200, 150, 300, 250]}, {"score": 0.9, "box": [20, 150, 70, 200]}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> CenterFaceDetector:
    """The demo model's detector, for drawn people."""
    path = tmp_path_factory.mktemp("drawn") / "detector.onnx"
    write_shipped("detector", path)
    return CenterFaceDetector(path)


def nothing(name: str) -> np.ndarray:
    if name == "noise":
        return np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    if name == "flat":
        return np.full((300, 400, 3), 128, np.uint8)
    return np.asarray(Image.open(PHOTOS / name).convert("RGB"))


@pytest.mark.parametrize("scale", [0.35, 0.6, 1.0])
@pytest.mark.parametrize("name", [*NO_FACES, "noise", "flat"])
def test_pictures_without_a_face_are_rejected_by_either_detector(
    drawn: CenterFaceDetector, centerface: Path, name: str, scale: float
) -> None:
    picture = Image.fromarray(nothing(name))
    pixels = np.asarray(picture.resize((int(picture.width * scale), int(picture.height * scale))))
    for detector in (drawn, CenterFaceDetector(centerface)):
        with pytest.raises(InputError, match="No face was found"):
            choose_face(detector.detect(pixels), photo_size=(pixels.shape[1], pixels.shape[0]))


def test_of_a_photo_with_a_toy_rocket_the_face_is_taken(drawn: CenterFaceDetector, astronaut: np.ndarray) -> None:
    """The demo's detector finds three candidates in it; the rocket is the largest."""
    found = drawn.detect(astronaut)
    assert found[0].box[0] > 300
    taken = choose_face(found, photo_size=(512, 512))
    np.testing.assert_allclose(taken.landmarks.mean(0), [223, 123], atol=8)


@pytest.mark.parametrize("number", range(12))
def test_drawn_people_are_found_by_their_detector(drawn: CenterFaceDetector, number: int) -> None:
    who = FIRST_HELD_OUT + number
    photo = np.asarray(render(person(who), portrait(who), 128))
    assert choose_face(drawn.detect(photo), photo_size=(128, 128)).score > MIN_SCORE + 0.05
