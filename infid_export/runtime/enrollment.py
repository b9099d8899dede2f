"""The face reader that an engine folder describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infid_engines.errors import EngineFolderError
from infid_engines.manifest import Manifest
from infid_export.faces.detection import CenterFaceDetector, FaceDetector, InsightFaceDetector
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.runtime.engine_set import EngineSet

# The warning at each enrollment with a folder that was built with `--detector drawn`.
DRAWN_ONLY = (
    "These engines find faces with the demo model's detector, which knows drawn people only; for photos, build the "
    "folder again with --detector centerface."
)


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
