"""From a photo to identity inputs: load, detect, align, recognize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template
from infid_export.faces.choice import TakenFace, choose_face, plausible_faces
from infid_export.faces.detection import FaceDetector
from infid_export.faces.photos import Photo, load_photo, photo_name
from infid_export.faces.recognition import SIZE, ArcFaceRecognizer
from infid_export.faces.search import find_faces

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FaceInputs:
    """The inputs of the identity encoder, as far as it has them.

    Args:
        face_crop: `[1, 3, size, size]` fp32 RGB in [0, 1]: what the image encoder sees; None if there is none.
        face_embedding: `[1, width]` fp32; None if the folder's identity weights read no face.
        taken: the photo and face that they come from; None if they do not come from a face in a photo.
    """

    face_crop: Array | None
    face_embedding: Array | None
    taken: TakenFace | None = None

    def arrays(self) -> dict[str, Array]:
        """Return them by the names of the inputs."""
        given = {"face_crop": self.face_crop, "face_embedding": self.face_embedding}
        return {name: each for name, each in given.items() if each is not None}


class FaceReader:
    """Reads faces with one detector and one recognizer.

    Args:
        detector: see `FaceDetector`.
        recognizer: see `ArcFaceRecognizer`.
        crop_size: side of the image encoder's input in pixels.
        limits: a sentence on the detector's limits; empty if it finds faces in photos.
    """

    def __init__(self, detector: FaceDetector, recognizer: ArcFaceRecognizer, crop_size: int, limits: str = "") -> None:
        self.limits = limits
        self._detector = detector
        self._recognizer = recognizer
        self._crop_size = crop_size

    def read(self, photo: Photo, face_index: int | None = None) -> FaceInputs:
        """Read one person's face.

        Args:
            photo: see `load_photo`.
            face_index: index into `plausible_faces`; None is the first.

        Raises:
            InputError: see `load_photo`, `choose_face` and `ArcFaceRecognizer.embed`.
        """
        pixels = load_photo(photo)
        size = pixels.shape[1], pixels.shape[0]
        found = find_faces(self._detector, pixels)
        face = choose_face(found, face_index, photo_size=size, limits=self.limits)
        taken = TakenFace(photo_name(photo), face_index or 0, tuple(plausible_faces(found, size)))
        crop = align(pixels, face.landmarks, portrait_template(), self._crop_size)
        aligned = align(pixels, face.landmarks, ARCFACE_TEMPLATE, SIZE)
        embedding = self._recognizer.embed(aligned)[None]
        return FaceInputs(crop.astype(np.float32).transpose(2, 0, 1)[None] / 255, embedding, taken)
