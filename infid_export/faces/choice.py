"""Chooses the face of a photo: which detections are plausible, their order, and the one to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_export.faces.alignment import ARCFACE_TEMPLATE, similarity
from infid_export.faces.detection import Face

MIN_EYE_DISTANCE = 12.0  # pixels; below this, a 112-pixel crop is mostly interpolated
# With the demo model's detector, the lowest score of 200 drawn portraits was 0.72. The highest of 65 false positives
# in 24 images without a face, at six sizes and three orientations, was 0.42. With CenterFace, the lowest of nine real
# faces was 0.76, and its four false positives had 0.
MIN_SCORE = 0.6
# A larger face goes before a smaller one unless its score is lower by more than this. Repeated detections of one face
# differ by up to 0.18 in score, their means by less.
_FAR_LOWER = 0.15
# RMS distance of the landmarks from ArcFace's frame after fitting, in eye distances. Frontal faces have 0.03 to 0.11,
# a head turned by 45 degrees 0.22, a profile that is still usable 0.30.
_MAX_MISFIT = 0.35
_OUTSIDE = 0.25  # how far outside the photo a landmark may be, in eye distances
_FIX = "Use a sharp, upright photo with a face seen from the front."


@dataclass(frozen=True)
class TakenFace:
    """The face of a photo that was used.

    Args:
        photo: name of the photo, for messages.
        index: index of the face that was used.
        faces: all plausible faces that were found, by index.
    """

    photo: str
    index: int
    faces: tuple[Face, ...]

    @property
    def face(self) -> Face:
        """The face that was used."""
        return self.faces[self.index]

    def __str__(self) -> str:
        """Return one sentence: how many faces were found, which one was used, and its score."""
        count = len(self.faces)
        taken = f"score {self.face.score:.2f}, {self.face.eye_distance:.0f} pixels between the eyes"
        if count == 1:
            return f"{self.photo}: 1 face found, {taken}"
        others = ", ".join(
            f"{index} at {_place(face)} with score {face.score:.2f}"
            for index, face in enumerate(self.faces[:6])
            if index != self.index
        )
        more = f" and {count - 6} more" if count > 6 else ""
        return (
            f"{self.photo}: {count} faces found, used {self.index} at {_place(self.face)} ({taken}); "
            f"others to choose by face index: {others}{more}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; boxes are left, top, right, bottom in pixels."""
        faces = [
            {"score": round(face.score, 4), "box": [round(float(value), 1) for value in face.box]}
            for face in self.faces
        ]
        return {"photo": self.photo, "found": len(faces), "taken": self.index, "faces": faces}


def _place(face: Face) -> str:
    left, top, right, bottom = (round(float(value)) for value in face.box)
    return f"({left}, {top}) of {right - left} × {bottom - top} pixels"


def doubt(face: Face, photo_size: tuple[int, int] | None = None) -> str:
    """Return why a detection is not a plausible face; empty if it is.

    Args:
        face: the detection.
        photo_size: width and height of the photo in pixels, if known.
    """
    marks = face.landmarks
    if not (np.isfinite(marks).all() and np.isfinite(face.box).all() and np.isfinite(face.score)):
        return "its coordinates or its score are not finite"
    if face.score < MIN_SCORE:
        return f"its score is {face.score:.2f}, but at least {MIN_SCORE:.2f} is needed"
    eyes, mouth = marks[:2].mean(0), marks[3:].mean(0)
    if mouth[1] <= eyes[1]:
        return "its mouth is not below its eyes"
    if face.eye_distance == 0 or _misfit(marks) > _MAX_MISFIT:
        return "eyes, nose and mouth are not placed as in a face seen from the front"
    if photo_size is not None:
        reach = _OUTSIDE * face.eye_distance
        if (marks < -reach).any() or (marks > np.array(photo_size) - 1 + reach).any():
            return "a part of it is outside the photo"
    return ""


def _misfit(marks: np.ndarray[Any, Any]) -> float:
    """Return the distance of landmarks from ArcFace's frame after fitting, in eye distances."""
    matrix = similarity(marks.astype(np.float64), ARCFACE_TEMPLATE)
    apart = marks @ matrix[:, :2].T + matrix[:, 2] - ARCFACE_TEMPLATE
    eyes = np.linalg.norm(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0])
    return float(np.sqrt((apart**2).sum(1).mean()) / eyes)


def plausible_faces(faces: Sequence[Face], photo_size: tuple[int, int] | None = None) -> list[Face]:
    """Return the plausible faces, the preferred one first.

    Faces with a score near the best one come first, from large to small; then the others, from large to small.

    Args:
        faces: detections in one photo.
        photo_size: width and height of the photo in pixels, if known.
    """
    kept = [face for face in faces if not doubt(face, photo_size)]
    best = max((face.score for face in kept), default=0.0)
    return sorted(kept, key=lambda face: (face.score < best - _FAR_LOWER, -face.area))


def choose_face(
    faces: Sequence[Face],
    index: int | None = None,
    *,
    photo_size: tuple[int, int] | None = None,
    limits: str = "",
) -> Face:
    """Choose the face of a photo.

    Args:
        faces: detections in any order.
        index: index into `plausible_faces`; None is the first.
        photo_size: width and height of the photo in pixels, if messages should include them.
        limits: limits of the detector, which may explain why nothing was found.

    Raises:
        InputError: there is no plausible face, no face with that index, or the face is too small.
    """
    photo = "photo" if photo_size is None else f"photo ({photo_size[0]} × {photo_size[1]})"
    plausible = plausible_faces(faces, photo_size)
    if not plausible:
        likeliest = max(faces, key=lambda face: face.score, default=None)
        why = f": the best of {len(faces)} detection(s) is not one, {doubt(likeliest, photo_size)}" if likeliest else ""
        raise InputError(f"No face was found in the {photo}{why}.", fix=f"{_FIX} {limits}".rstrip())
    if index is not None and not (isinstance(index, int) and 0 <= index < len(plausible)):
        raise InputError(
            f"The {photo} has {len(plausible)} face(s), so there is no face {index}.",
            fix=f"Choose a face index from 0 (the default) to {len(plausible) - 1}.",
        )
    face = plausible[index or 0]
    if face.eye_distance < MIN_EYE_DISTANCE:
        raise InputError(
            f"The face in the {photo} is too small: {math.floor(face.eye_distance)} pixels between the eyes, "
            f"but at least {MIN_EYE_DISTANCE:.0f} are needed.",
            fix="Use a closer or larger photo.",
        )
    return face
