"""Photo to identity inputs: load, detect, align, recognise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template
from infid_export.faces.detection import FaceDetector, choose_face
from infid_export.faces.photos import Photo, load_photo
from infid_export.faces.recognition import SIZE, ArcFaceRecognizer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FaceInputs:
    """What the identity encoder takes.

    Args:
        face_crop: `[1, 3, size, size]` fp32 RGB in [0, 1].
        face_embedding: `[1, width]` fp32, L2-normalised.
    """

    face_crop: Array
    face_embedding: Array


class FaceReader:
    """Reads faces with one detector and one recogniser.

    Args:
        detector: see `FaceDetector`.
        recognizer: see `ArcFaceRecognizer`.
        crop_size: side of the image encoder's input in pixels.
    """

    def __init__(self, detector: FaceDetector, recognizer: ArcFaceRecognizer, crop_size: int) -> None:
        self._detector = detector
        self._recognizer = recognizer
        self._crop_size = crop_size

    def read(self, photo: Photo, face_index: int | None = None) -> FaceInputs:
        """Read one person's face.

        Args:
            photo: see `load_photo`.
            face_index: which face, 0 being the largest; None is the largest.

        Raises:
            InputError: see `load_photo`, `choose_face` and `ArcFaceRecognizer.embed`.
        """
        pixels = load_photo(photo)
        height, width = pixels.shape[:2]
        face = choose_face(self._detector.detect(pixels), face_index, photo_size=(width, height))
        crop = align(pixels, face.landmarks, portrait_template(), self._crop_size)
        aligned = align(pixels, face.landmarks, ARCFACE_TEMPLATE, SIZE)
        return FaceInputs(crop.astype(np.float32).transpose(2, 0, 1)[None] / 255, self._recognizer.embed(aligned)[None])
