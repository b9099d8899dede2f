"""Compares the encoders of a build with those that its identity weights were trained with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.model.changes.updated_source import base_of
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.encoder_record import TAG, EncoderRecord
from infid_export.model.shipped import fingerprint
from infid_export.model.sources import ModelSource


def encoders_of(source: ModelSource, recognizer: str, recognizer_name: str, detector: str) -> EncoderRecord:
    """Return a record of a model's image encoder and of face models.

    Args:
        source: the model.
        recognizer: see `EncoderRecord`.
        recognizer_name: likewise.
        detector: likewise.
    """
    if not source.config.reads_image:
        return EncoderRecord(recognizer, recognizer_name, detector=detector)
    identifier, name = source.fingerprint("image_encoder"), f"the {source.name} model's"
    base = base_of(source)
    if isinstance(base, CheckpointSource):
        file = base.image_encoder_file
        name = f"open_clip's {base.image_encoder}" if file is None else file.name
        identifier = f"{TAG}{base.config.image_encoder} {base.image_encoder}" if file is None else identifier
    return EncoderRecord(recognizer, recognizer_name, identifier, name, detector)


def trained_with(source: ModelSource, identity: Path | None) -> EncoderRecord | None:
    """Return the record of identity weights; None if they have none.

    Args:
        source: the model.
        identity: file of the weights; None uses the model's own.

    Raises:
        InputError: the file or its record cannot be read.
    """
    if identity is not None:
        return EncoderRecord.read(identity)
    if source.name != "demo":
        return None
    return encoders_of(source, fingerprint("recognizer"), "the demo model's recognizer", "drawn")


def encoder_notes(
    source: ModelSource, identity: Path | None, recognizer: tuple[str, str], detector: str, allow_others: bool
) -> tuple[str, ...]:
    """Compare the encoders of a build with those that its identity weights were trained with.

    Args:
        source: the model.
        identity: file of the weights; None uses the model's own.
        recognizer: fingerprint and name of the recognizer.
        detector: kind of the detector.
        allow_others: whether different encoders are noted instead of rejected.

    Returns:
        Sentences on what differs or is unknown.

    Raises:
        InputError: an encoder differs, and that was not allowed.
    """
    if identity is None and source.name != "demo":
        return ()  # random weights belong to no encoder
    weights = "the demo model's identity weights" if identity is None else f"identity weights {identity}"
    trained, given = trained_with(source, identity), encoders_of(source, *recognizer, detector)
    if trained is None:
        read = [*["recognizer"] * source.config.reads_face, *["image encoder"] * source.config.reads_image]
        return (
            f"{weights}: they do not say which {' and '.join(read)} they were trained with, so "
            f"{'this is' if len(read) == 1 else 'these are'} not checked",
        )
    found = [*differences(trained, given)]
    if found and not allow_others:
        raise InputError(
            f"{weights[0].upper()}{weights[1:]} were trained {', and '.join(found)}.",
            fix="Give the encoders that they were trained with, or train identity weights with these; "
            "--allow-other-encoders builds them anyway.",
        )
    return tuple(f"{weights}: they were trained {clause}" for clause in (*found, *doubts(trained, given)))


def differences(trained: EncoderRecord, given: EncoderRecord) -> Iterator[str]:
    """Yield a clause for each encoder that differs from the one that the weights were trained with."""
    for what, before, now, before_name, now_name in _pairs(trained, given):
        if before and before != now and before.startswith(TAG) == now.startswith(TAG):
            yield f"with the {what} {_named(before_name, before)}, not {_named(now_name, now)}"


def doubts(trained: EncoderRecord, given: EncoderRecord) -> Iterator[str]:
    """Yield a clause for each encoder whose difference is unknown, or does not matter much."""
    for what, before, now, before_name, now_name in _pairs(trained, given):
        if not before and not before_name:
            yield f"with an unnamed {what}"
        elif not before or before.startswith(TAG) != now.startswith(TAG):
            yield f"with the {what} {before_name}; whether {now_name} is the same is not checked"
    if trained.detector and given.detector and trained.detector != given.detector:
        yield f"on faces that {trained.detector} found, not {given.detector}"


def _pairs(trained: EncoderRecord, given: EncoderRecord) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield what it is, both identifiers and both names of each encoder that is read."""
    pairs = (
        ("recognizer", trained.recognizer, given.recognizer, trained.recognizer_name, given.recognizer_name),
        ("image encoder", trained.image_encoder, given.image_encoder, trained.image_encoder_name,
         given.image_encoder_name),
    )  # fmt: skip
    yield from (pair for pair in pairs if pair[2])


def _named(name: str, identifier: str) -> str:
    return name if identifier.startswith(TAG) else f"{name} ({identifier[:12]}…)"
