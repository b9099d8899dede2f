"""The face reader that an engine folder describes."""

from __future__ import annotations

from pathlib import Path

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
    recognizer = faces.get("recognizer_path")
    if not recognizer or not faces.get("detector_path"):
        raise EngineFolderError(
            "The engine folder has no face detector or recognizer, so it cannot enroll photos.",
            fix="Build it again with `infid-export build --recognizer FILE`, or load persons made elsewhere.",
        )
    detector: FaceDetector
    if faces["detector"] == "insightface":
        detector = InsightFaceDetector(Path(faces["detector_path"]))
    else:
        detector = CenterFaceDetector(engines.verify(faces["detector_path"]))
    sizes = {spec.name: spec.shape[-1] for spec in manifest.graph("identity_encoder").inputs}
    crop, width = sizes["face_crop"], sizes["face_embedding"]
    assert isinstance(crop, int) and isinstance(width, int)
    limits = DRAWN_ONLY if faces["detector"] == "drawn" else ""
    return FaceReader(detector, ArcFaceRecognizer(engines.verify(str(recognizer)), width), crop, limits)
