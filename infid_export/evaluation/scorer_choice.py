"""The choice of the scoring encoders: the user's files, or by default the demo model's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from infid_export.evaluation.face_scorer import Crop, DetectedFaceScorer, Scale
from infid_export.evaluation.scorers import ImageTextScorer, Scorers
from infid_export.export.face_models import open_detector, write_shipped
from infid_export.model.shipped import ShippedSource, fingerprint


def open_scorers(
    *,
    clip: tuple[str, Path] | None = None,
    facenet: Path | None = None,
    facenet_scale: Scale = "signed",
    facenet_crop: Crop = "aligned",
    face_detector: str = "drawn",
) -> Scorers:
    """Open the scoring encoders.

    Args:
        clip: OpenCLIP's name of an architecture and its checkpoint; None uses the demo model's own pair.
        facenet: FaceNet-type recognizer, see `DetectedFaceScorer`; None uses the demo model's second recognizer, which
            its generator was not trained with.
        facenet_scale: scale of its pixels.
        facenet_crop: kind of its crop.
        face_detector: see `open_detector`.

    Raises:
        InputError: a file is missing or has other shapes.
        BackendUnavailableError: a library is missing.
    """
    detector, name = open_detector(face_detector)
    with tempfile.TemporaryDirectory() as scratch:
        path, model_name = facenet, None
        if path is None:
            path, model_name = Path(scratch) / "facenet.onnx", f"demo {fingerprint('facenet')}"
            write_shipped("facenet", path)
        face = DetectedFaceScorer(detector, path, facenet_scale, facenet_crop, name, model_name)
    from infid_export.evaluation.clip_scorers import OpenClipScorer, TowerScorer  # after the cheap checks: torch

    image_text: ImageTextScorer = TowerScorer(ShippedSource()) if clip is None else OpenClipScorer(*clip)
    return Scorers(image_text, face)
