from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infid_export.faces import search
from infid_export.faces.alignment import ARCFACE_TEMPLATE
from infid_export.faces.choice import MIN_EYE_DISTANCE, choose_face
from infid_export.faces.detection import CenterFaceDetector, Face
from infid_export.faces.search import find_faces


class SquareDetector:
    """Detects a white square as a face if it is large enough in the image, and counts the images."""

    def __init__(self, smallest: float) -> None:
        self.shown: list[tuple[int, int]] = []
        self.smallest = smallest  # fraction of the longer side

    def detect(self, photo: np.ndarray) -> list[Face]:
        self.shown.append(photo.shape[:2])
        rows, columns = np.nonzero(photo[..., 0] == 255)
        if not len(rows):
            return []
        left, top, side = columns.min(), rows.min(), np.ptp(rows) + 1
        if side < self.smallest * max(photo.shape[:2]) or np.ptp(columns) + 1 != side:  # nor one that is cut off
            return []
        return [Face(np.array([left, top, left + side, top + side]), 0.9, ARCFACE_TEMPLATE * side + [left, top])]


def photo_of(left: int, top: int, side: int, size: tuple[int, int] = (4000, 6000)) -> np.ndarray:
    photo = np.zeros((*size, 3), np.uint8)
    photo[top : top + side, left : left + side] = 255
    return photo


@pytest.mark.parametrize("corner", [(0, 0), (5940, 3940), (2980, 1980), (1230, 1230), (4090, 700)])
def test_a_small_face_is_found_once_wherever_it_is(corner: tuple[int, int]) -> None:
    detector = SquareDetector(0.04)
    (found,) = find_faces(detector, photo_of(*corner, 60))
    np.testing.assert_allclose(found.box, [*corner, corner[0] + 60, corner[1] + 60])
    np.testing.assert_allclose(found.landmarks, ARCFACE_TEMPLATE * 60 + corner)
    assert max(max(shape) for shape in detector.shown[1:]) <= 3000


def test_a_photo_that_shows_a_face_is_searched_once() -> None:
    detector = SquareDetector(0.04)
    assert len(find_faces(detector, photo_of(100, 100, 400))) == 1
    assert len(detector.shown) == 1


def test_the_search_ends_where_tiles_show_a_face() -> None:
    detector = SquareDetector(0.04)
    find_faces(detector, photo_of(100, 100, 130))
    assert detector.shown == [(4000, 6000), *[(3000, 3000)] * 6]


@pytest.mark.parametrize(
    ("size", "most"), [((720, 1280), 1), ((1, 1), 1), ((1000, 1400), 3), ((4000, 6000), 31), ((8600, 11600), 160)]
)
def test_looks_at_a_photo_without_a_face_are_bounded(size: tuple[int, int], most: int) -> None:
    detector = SquareDetector(0.04)
    assert find_faces(detector, np.zeros((*size, 3), np.uint8)) == []
    assert len(detector.shown) <= most
    assert all(max(shape) >= min(search._FINEST, max(size)) or shape == size for shape in detector.shown)


def test_what_is_implausible_is_searched_closer_and_kept() -> None:
    class Doubtful(SquareDetector):
        def detect(self, photo: np.ndarray) -> list[Face]:
            self.shown.append(photo.shape[:2])
            return [Face(np.array([10, 10, 50, 50]), 0.4, ARCFACE_TEMPLATE * 40 + 10)] if len(self.shown) == 1 else []

    detector = Doubtful(0.0)
    (found,) = find_faces(detector, np.zeros((1000, 1400, 3), np.uint8))
    assert (found.score, len(detector.shown)) == (0.4, 3)


@pytest.mark.parametrize(
    ("size", "eyes", "corner"), [((4000, 6000), 26, (4200, 2600)), ((2000, 3000), 13, (1600, 1100))], ids=["24", "6"]
)
def test_a_real_face_in_many_megapixels(
    centerface: Path, astronaut: np.ndarray, size: tuple[int, int], eyes: int, corner: tuple[int, int]
) -> None:
    side = round(512 * eyes / 44)
    photo = np.full((*size, 3), (90, 120, 90), np.uint8)
    small = Image.fromarray(astronaut).resize((side, side), Image.Resampling.LANCZOS)
    photo[corner[1] : corner[1] + side, corner[0] : corner[0] + side] = np.asarray(small)
    detector = CenterFaceDetector(centerface)
    assert detector.detect(photo) == []
    taken = choose_face(find_faces(detector, photo), photo_size=size[::-1])
    assert taken.eye_distance == pytest.approx(eyes, rel=0.1)
    assert taken.eye_distance >= MIN_EYE_DISTANCE
    expected = np.array([223, 123]) * side / 512 + corner
    np.testing.assert_allclose(taken.landmarks.mean(0), expected, atol=0.1 * eyes)
