"""The face part of a plan: the recognizer and the detector of an engine folder. Imports no torch."""

from __future__ import annotations

from typing import Any

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.export.artifact import DETECTOR, RECOGNIZER, SMALL, Artifact
from infid_export.export.build_options import BuildOptions
from infid_export.export.code_keys import code_hash
from infid_export.export.face_models import detector_fingerprint
from infid_export.export.writers import Writers
from infid_export.faces.detection import INSIGHTFACE_LICENSE, InsightFaceDetector
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.model.encoder_match import encoder_notes
from infid_export.model.shipped import fingerprint
from infid_export.model.sources import BUILT_IN, ModelSource


def face_files(
    options: BuildOptions, source: ModelSource, writers: Writers
) -> tuple[dict[str, Artifact], tuple[str, ...]]:
    """Check the face models first, so that a broken one does not fail after an hour of building.

    Args:
        options: options of the build, with the detector settled.
        source: the model.
        writers: the writers of the artifacts.

    Returns:
        The artifacts by path, and notes on what was chosen, and why.

    Raises:
        InputError: a face model is missing or unusable, or not the one that the identity weights were trained with.
    """
    files, notes, used = _recognizer(options, source, writers) if source.config.reads_face else ({}, (), ("", ""))
    notes += encoder_notes(source, options.identity, used, str(options.detector), options.allow_other_encoders)
    if source.config.finds_faces:
        more, note = _detector(options, writers)
        files, notes = files | more, (*notes, note)
    return files, notes


def _recognizer(
    options: BuildOptions, source: ModelSource, writers: Writers
) -> tuple[dict[str, Artifact], tuple[str, ...], tuple[str, str]]:
    """Return the recognizer by its path, notes, and its fingerprint and name."""
    notes: tuple[str, ...] = ()
    used = ("", "")
    fields: dict[str, Any]
    if options.recognizer is not None:
        recognizer = ArcFaceRecognizer(options.recognizer, source.config.face_width)
        used = recognizer.fingerprint, recognizer.name
        fields = {"recognizer": sha256_file(options.recognizer)}
        if recognizer.range != "signed":  # people enrolled by versions that ignored this have other embeddings
            fields["pixels"] = recognizer.range
        notes += (f"face recognizer: {options.recognizer}, pixels {recognizer.range}. {INSIGHTFACE_LICENSE}",)
    elif source.name == "demo":
        used = fingerprint("recognizer"), "the demo model's recognizer"
        fields = {"recognizer": used[0], "code": code_hash("faces")}
        notes += ("face recognizer: the demo model's own, for drawn people",)
    elif source.name in BUILT_IN:
        fields = {"recognizer": "random", "seed": options.seed, "width": source.config.face_width}
        notes += ("face recognizer: random weights, like the model's; give a real one with --recognizer",)
    else:
        raise InputError(
            "A checkpoint needs the face recognizer that its identity weights were trained with.",
            fix=f"Give an ArcFace-type ONNX file with --recognizer. {INSIGHTFACE_LICENSE}",
        )
    return {RECOGNIZER: Artifact(RECOGNIZER, fields, writers.recognizer(), SMALL)}, notes, used


def _detector(options: BuildOptions, writers: Writers) -> tuple[dict[str, Artifact], str]:
    """Return the detector by its path, unless it stays where it is, and a note."""
    if options.detector == "insightface":
        assert options.face_models is not None
        pack = InsightFaceDetector(options.face_models).folder
        return {}, f"face detector: insightface with {pack}. {INSIGHTFACE_LICENSE}"
    assert options.detector is not None
    fields = {"detector": detector_fingerprint(options.detector), "code": code_hash("faces")}
    knows = "drawn people only; use centerface for photos" if options.detector == "drawn" else "photos"
    note = f"face detector: {options.detector}, for {knows}"
    return {DETECTOR: Artifact(DETECTOR, fields, writers.detector(), SMALL)}, note
