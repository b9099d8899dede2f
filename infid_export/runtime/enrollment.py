"""Enrolling: reads photos with the face models that an engine folder describes, and encodes what was read."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infid_engines.errors import EngineFolderError, InputError
from infid_engines.manifest import Manifest
from infid_engines.validation import shown, text_of, whole_number
from infid_export.faces.detection import CenterFaceDetector, FaceDetector, InsightFaceDetector
from infid_export.faces.photos import Photo
from infid_export.faces.reader import FaceInputs, FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.faces.reference import Reference
from infid_export.runtime.denoise import reject_non_finite
from infid_export.runtime.engine_set import EngineSet
from infid_export.runtime.person import Person, mix

# The warning at each enrollment with a folder that was built with `--detector drawn`.
DRAWN_ONLY = (
    "These engines find faces with the demo model's detector, which knows drawn people only; for photos, build the "
    "folder again with --detector centerface."
)


class Enroller:
    """Enrolls people for a pipeline. Photos are read while its engines run, one at a time.

    Args:
        manifest: of the engine folder.
        engines: of the folder.
        lock: held while an engine runs.
    """

    def __init__(self, manifest: Manifest, engines: EngineSet, lock: threading.RLock) -> None:
        self._manifest, self._engines, self._lock = manifest, engines, lock
        self._reader: FaceReader | None = None
        self._reading = threading.Lock()

    def read(
        self, photo: Photo | Sequence[Photo], face_index: int | None, reference: Reference | None
    ) -> list[FaceInputs]:
        """Read photos; see `Pipeline.read_faces`."""
        photos: list[Any] = list(photo) if isinstance(photo, list | tuple) else [photo]
        if not photos:
            raise InputError("No photo was given.", fix="Give at least one.")
        if face_index is not None:
            face_index = whole_number("The face index", face_index, "Give 0 for the largest face, or leave it out.")
        with self._reading:
            reader = self._open_reader()
        chosen = reader.reference(reference, face_index)
        if chosen == "face" and reader.limits:
            warnings.warn(reader.limits, stacklevel=4)  # at the caller of `Pipeline.enroll`
        faces = []
        for number, one in enumerate(photos):
            try:
                with self._reading:
                    faces.append(reader.read(one, face_index, chosen))
            except InputError as error:
                if len(photos) == 1:
                    raise
                raise InputError(f"Photo {number + 1} of {len(photos)}: {error.problem}", fix=error.fix) from error
        return faces

    def encode(self, face: FaceInputs | Sequence[FaceInputs], name: str) -> Person:
        """Encode faces of one person; see `Pipeline.encode`."""
        text_of("The name", name)
        faces = face if isinstance(face, list | tuple) and face else [face]
        with self._lock:
            people = [self._encoded(each, name) for each in faces]
        if len(people) == 1:
            return people[0]
        taken = tuple(each for person in people for each in person.faces)
        return replace(mix([(person, 1.0) for person in people], name), faces=taken)

    def close(self) -> None:
        """Free the face models."""
        with self._reading:
            self._reader = None

    def _open_reader(self) -> FaceReader:
        if self._reader is None:
            with self._lock:
                self._reader = open_face_reader(self._manifest, self._engines)
        return self._reader

    def _encoded(self, face: Any, name: str) -> Person:
        if not isinstance(face, FaceInputs):
            raise InputError(f"The face must be FaceInputs, not {shown(face)}.", fix="Use Pipeline.enroll for photos.")
        engine = self._engines["identity_encoder"]
        outputs = engine.run(face.arrays(engine.inputs))
        for output, values in outputs.items():
            reject_non_finite(values, output)
        tensors: dict[str, Any] = dict(outputs)
        taken = () if face.taken is None else (face.taken,)
        return Person(**tensors, model=str(self._manifest.model["id"]), name=name, faces=taken)


def open_face_reader(manifest: Manifest, engines: EngineSet) -> FaceReader:
    """Verify and open the detector and the recognizer of a folder.

    Args:
        manifest: the folder's manifest.
        engines: verifies the folder's files.

    Raises:
        EngineFolderError: the folder cannot enroll, or a file is damaged.
        InputError: the user's InsightFace folder is missing.
        BackendUnavailableError: insightface is not installed.
    """
    faces = manifest.faces
    sizes = {spec.name: int(spec.shape[-1]) for spec in manifest.graph("identity_encoder").inputs}  # type: ignore[arg-type]
    width, crop = sizes.get("face_embedding"), str(faces.get("crop", "portrait"))
    embeds, finds = width is not None, width is not None or crop != "whole"
    if (embeds and not faces.get("recognizer_path")) or (finds and not faces.get("detector_path")):
        raise EngineFolderError(
            "The engine folder has no face detector or recognizer, so it cannot enroll photos.",
            fix="Build it again with `infid-export build --recognizer FILE`, or load persons made elsewhere.",
        )
    recognizer = ArcFaceRecognizer(engines.verify(faces["recognizer_path"]), width) if width is not None else None
    return FaceReader(
        _detector(faces, engines) if finds else None,
        recognizer,
        sizes.get("face_crop"),
        DRAWN_ONLY if finds and faces["detector"] == "drawn" else "",
        crop,
        faces.get("embedding", "normalized") == "normalized",
    )


def _detector(faces: Mapping[str, Any], engines: EngineSet) -> FaceDetector:
    if faces["detector"] == "insightface":
        return InsightFaceDetector(Path(faces["detector_path"]))
    return CenterFaceDetector(engines.verify(faces["detector_path"]))
