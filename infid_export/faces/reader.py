"""From a photo to identity inputs: load, detect, align, recognize; or only load and scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template
from infid_export.faces.choice import TakenFace, choose_face, plausible_faces
from infid_export.faces.detection import FaceDetector
from infid_export.faces.photos import Photo, load_photo, photo_name
from infid_export.faces.recognition import SIZE, ArcFaceRecognizer
from infid_export.faces.reference import Reference, boxed, center_crop, checked_reference
from infid_export.faces.search import find_faces

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FaceInputs:
    """The inputs of the identity encoder, as far as it has them.

    Args:
        face_crop: `[1, 3, size, size]` fp32 RGB in [0, 1]: what the image encoder sees; where there is none, the
            aligned face, or None.
        face_embedding: `[1, width]` fp32; None if no recognizer read the photo.
        taken: the photo and face that they come from; None if they do not come from a face in a photo.
    """

    face_crop: Array | None
    face_embedding: Array | None
    taken: TakenFace | None = None

    def arrays(self, names: Iterable[str]) -> dict[str, Array]:
        """Return the inputs with these names.

        Raises:
            InputError: one of them is missing.
        """
        given = {"face_crop": self.face_crop, "face_embedding": self.face_embedding}
        found = {name: each for name in names if (each := given.get(name)) is not None}
        missing = sorted(set(names) - set(found))
        if missing:
            raise InputError(
                f"The face has no {missing[0]}, which is read here.", fix="Read it with Pipeline.read_faces."
            )
        return found


class FaceReader:
    """Reads photos with one detector and one recognizer.

    Args:
        detector: see `FaceDetector`; None if only whole images are read.
        recognizer: see `ArcFaceRecognizer`; None if no embedding is read.
        crop_size: side of the image encoder's input in pixels; None if there is none.
        limits: a sentence on the detector's limits; empty if it finds faces in photos.
        crop: what the image encoder sees of a photo with a face, see `IdentityConfig`.
        normalized: whether the embedding has length 1.
    """

    def __init__(
        self,
        detector: FaceDetector | None,
        recognizer: ArcFaceRecognizer | None,
        crop_size: int | None,
        limits: str = "",
        crop: str = "portrait",
        normalized: bool = True,
    ) -> None:
        self.limits = limits
        self._detector = detector
        self._recognizer = recognizer
        self._crop_size = crop_size
        self._crop = crop
        self._normalized = normalized

    def reference(self, asked: Any = None, face_index: int | None = None) -> Reference:
        """Return what is read of photos.

        Args:
            asked: `face`, `whole` or a box; None is a face, or `whole` if no face is searched.
            face_index: the face that was asked for.

        Raises:
            InputError: that cannot be read, or has no faces to choose from.
        """
        usual: Reference = "whole" if self._detector is None else "face"
        chosen = usual if asked is None else checked_reference(asked)
        if chosen == "face" and self._detector is None:
            raise InputError(
                "The identity weights of this folder read whole images, and no face is searched in them.",
                fix="Leave the reference out, or give a box around the face.",
            )
        if chosen != "face" and self._crop_size is None:
            raise InputError(
                "The identity weights of this folder read a face only, so they cannot see a whole image or a box.",
                fix="Leave the reference out, or build a folder with identity weights that read images.",
            )
        if chosen != "face" and face_index is not None:
            raise InputError("A face index was given, but no face is searched.", fix="Leave it out.")
        return chosen

    def read(self, photo: Photo, face_index: int | None = None, reference: Any = None) -> FaceInputs:
        """Read one person's face, or an image.

        Args:
            photo: see `load_photo`.
            face_index: index into `plausible_faces`; None is the first.
            reference: see `reference`.

        Raises:
            InputError: see `load_photo`, `reference`, `boxed`, `choose_face` and `ArcFaceRecognizer.embed`.
        """
        chosen = self.reference(reference, face_index)
        pixels = load_photo(photo)
        return self._face(photo, pixels, face_index) if chosen == "face" else self._image(pixels, chosen)

    def _face(self, photo: Photo, pixels: Array, face_index: int | None) -> FaceInputs:
        assert self._detector is not None
        size = pixels.shape[1], pixels.shape[0]
        found = find_faces(self._detector, pixels)
        face = choose_face(found, face_index, photo_size=size, limits=self.limits)
        taken = TakenFace(photo_name(photo), face_index or 0, tuple(plausible_faces(found, size)))
        side, embedding = self._crop_size or SIZE, None
        if self._crop == "whole" and self._crop_size is not None:
            crop = center_crop(pixels, side)
        else:
            portrait = self._crop == "portrait" and self._crop_size is not None
            crop = align(pixels, face.landmarks, portrait_template() if portrait else ARCFACE_TEMPLATE, side)
        if self._recognizer is not None:
            aligned = align(pixels, face.landmarks, ARCFACE_TEMPLATE, SIZE)
            embedding = self._recognizer.embed(aligned, self._normalized)[None]
        return FaceInputs(_unit(crop), embedding, taken)

    def _image(self, pixels: Array, chosen: Reference) -> FaceInputs:
        """Return an image without a face: a zero embedding."""
        assert self._crop_size is not None
        shown = pixels if isinstance(chosen, str) else boxed(pixels, chosen)
        embedding = None if self._recognizer is None else np.zeros((1, self._recognizer.width), np.float32)
        return FaceInputs(_unit(center_crop(shown, self._crop_size)), embedding)


def _unit(crop: Array) -> Array:
    """Return `[size, size, 3]` uint8 as `[1, 3, size, size]` in [0, 1]."""
    return crop.astype(np.float32).transpose(2, 0, 1)[None] / 255
