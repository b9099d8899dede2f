"""From a folder of people's photos to shards: detect, align, embed, scale, and say why a photo was dropped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from infid_engines.atomic_files import locked, whole_folder
from infid_engines.errors import InputError
from infid_engines.progress import Reporter, SilentReporter, Stage
from infid_engines.validation import settle_fields
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template
from infid_export.faces.choice import choose_face, plausible_faces
from infid_export.faces.detection import Face, FaceDetector
from infid_export.faces.photos import load_photo
from infid_export.faces.recognition import SIZE, ArcFaceRecognizer
from infid_export.faces.search import find_faces
from infid_training.captions import ENDINGS, Captions
from infid_training.duplicates import keep_together, link_people, reasons, thumbnail
from infid_training.shards import REPORT, SPLITS, PreparedPhoto, Shard, ShardIndex, ShardWriter, read_members

# A second face with more than this fraction of the chosen face's area could also be the person.
_RIVAL = 0.5
_NOT_UTF8 = "its name is not UTF-8"
# The most that a photo is enlarged: beyond it, a target would train the model to blur.
_ENLARGED = 2.0
_WAITING = ".waiting"  # photos whose split is not known yet, within the folder being written

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PrepareOptions:
    """How photos are prepared.

    Args:
        size: size of the targets in pixels; SDXL's is 1024.
        crop_size: size of the aligned faces; the image encoder's input size.
        face_width: length of the recognizer's embeddings.
        single_photo: leave people with one usable photo out, or use that photo as both reference and target.
        validation: fraction of the people that is held out.
        seed: decides, with each person's name, who is held out.
        photos_per_shard: maximum number of photos in one tar file.
    """

    size: int = 1024
    crop_size: int = 224
    face_width: int = 512
    single_photo: Literal["refuse", "own-pair"] = "refuse"
    validation: float = 0.05
    seed: int = 0
    photos_per_shard: int = 1000

    def __post_init__(self) -> None:
        """Reject impossible values."""
        settle_fields(self)
        if self.size < 64 or self.size % 8:
            raise InputError(f"The size must be a multiple of 8, at least 64, not {self.size}.", fix="SDXL's is 1024.")
        if not 0 <= self.validation < 1:
            raise InputError(
                f"The validation fraction must be at least 0 and below 1, not {self.validation}.", fix="0.05 is usual."
            )
        if min(self.crop_size, self.photos_per_shard) < 1:
            raise InputError("Sizes and counts must be at least 1.", fix="Give a positive number.")


@dataclass(frozen=True)
class PrepareReport:
    """What was kept and what was dropped.

    Args:
        people: number of people kept, by split.
        photos: number of photos kept, by split.
        captions: number of kept photos with a caption, by split.
        dropped: reason by `person/photo`.
        kept_together: why people are on the same side of the split, by person.
        unused_captions: captions that belong to no photo, as `person/caption`.
        seconds: time taken.
    """

    people: dict[str, int]
    photos: dict[str, int]
    captions: dict[str, int]
    dropped: dict[str, str]
    kept_together: dict[str, str]
    unused_captions: list[str]
    seconds: float


@dataclass(frozen=True)
class _Kept:
    """What is kept in memory of a photo whose split is not known yet."""

    person: str
    source: str
    captioned: bool
    thumbnail: Array


def split_of(person: str, seed: int, validation: float) -> str:
    """Return `train` or `validation`; it depends on the person's name alone, so adding photos does not change it."""
    digest = hashlib.sha256(f"{seed}:{person}".encode()).digest()
    return SPLITS[int.from_bytes(digest[:8], "big") / 2**64 < validation]


def prepare(
    folder: Path,
    output: Path,
    detector: FaceDetector,
    recognizer: Path,
    options: PrepareOptions,
    reporter: Reporter | None = None,
    detector_kind: str = "",
) -> PrepareReport:
    """Prepare a folder of people's photos as shards.

    Args:
        folder: one sub-folder per person, with photos, and captions beside them (see `Captions`).
        output: folder to write; must not exist. It appears once it is complete.
        detector: face detector.
        recognizer: ArcFace-type ONNX file.
        options: see `PrepareOptions`.
        reporter: shown the progress.
        detector_kind: `centerface`, `drawn` or `insightface`; recorded in the index.

    Returns:
        What was kept and dropped; also written to `report.json`.

    Raises:
        InputError: there are no people or none is left to train on, the output exists or another process is writing
            it, or the disk is full.
    """
    started = time.monotonic()
    shown = reporter or SilentReporter()
    embedder = ArcFaceRecognizer(recognizer, options.face_width)
    people, dropped = find_people(folder)
    unused: list[str] = []
    reader = _PhotoReader(detector, embedder, options, dropped, unused)
    shown.plan({"photos": 1.0})
    lock = locked(output.parent / f".{output.name}.lock", f"Another process is writing {output}.")
    with lock, whole_folder(output) as partial, shown.stage("photos") as stage:
        with ShardWriter(partial / _WAITING, "photos", options.photos_per_shard) as writer:
            kept = _read_all(people, reader, writer, stage)
        links = link_people([(photo.person, photo.source) for photo in kept], [photo.thumbnail for photo in kept])
        alone = {photo.person: split_of(photo.person, options.seed, options.validation) for photo in kept}
        splits = keep_together(alone, links)
        counts = {
            "people": Counter(splits.values()),
            "photos": Counter(splits[photo.person] for photo in kept),
            "captions": Counter(splits[photo.person] for photo in kept if photo.captioned),
        }
        if not counts["photos"]["train"]:
            raise _nobody_left(folder, counts["photos"]["validation"], dropped)
        shards = _split_up(partial, writer.shards, [splits[photo.person] for photo in kept], options)
        ShardIndex(
            options.size, options.crop_size, options.face_width, options.single_photo, embedder.fingerprint,
            options.seed, options.validation, shards, embedder.name, detector_kind,
        ).write(partial)  # fmt: skip
        report = PrepareReport(
            **{name: {split: count[split] for split in SPLITS} for name, count in counts.items()},
            dropped=dropped,
            kept_together=reasons(links, splits),
            unused_captions=unused,
            seconds=time.monotonic() - started,
        )
        written = json.dumps(asdict(report), indent=1, ensure_ascii=False)
        # a reason may contain the folder's name, which may not be UTF-8; the escapes written for it are valid JSON
        (partial / REPORT).write_text(written, encoding="utf-8", errors="backslashreplace")
    return report


def _read_all(people: dict[str, list[Path]], reader: _PhotoReader, writer: ShardWriter, stage: Stage) -> list[_Kept]:
    """Write every usable photo, and return what its split depends on, in the same order."""
    total, seen = sum(map(len, people.values())), 0
    kept: list[_Kept] = []
    for person, paths in people.items():
        photos = []
        for read in reader.read(person, paths):
            seen += 1
            stage.update(seen / total, f"{seen} of {total}, {len(reader.dropped)} dropped")
            if read is not None:
                photos.append(read)
        if len(photos) == 1 and reader.options.single_photo == "refuse":
            only = photos.pop()[0].name
            reader.dropped[only] = "the person's only usable photo (--single-photo own-pair uses it)"
        for photo, small in photos:
            writer.write(photo)
            kept.append(_Kept(person, photo.source, photo.caption is not None, small))
    return kept


def _split_up(
    folder: Path, waiting: Sequence[Shard], splits: Sequence[str], options: PrepareOptions
) -> tuple[Shard, ...]:
    """Move photos into the shards of their splits; at most one shard is on disk twice."""
    split = iter(splits)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(ShardWriter(folder, name, options.photos_per_shard)) for name in SPLITS}
        for shard in waiting:
            path = folder / _WAITING / shard.file
            for members in read_members(path):
                writers[next(split)].write_members(members)
            path.unlink()
    (folder / _WAITING).rmdir()
    return tuple(shard for writer in writers.values() for shard in writer.shards)


def find_people(folder: Path) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the files of each person that may be photos, and a reason for everything else in the folder.

    Raises:
        InputError: the folder is missing, or has no person's folder with a file in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", fix="Give a folder with one sub-folder per person.")
    dropped: dict[str, str] = {}
    people: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        name = _readable(entry.name)
        if name != entry.name:
            dropped[name] = _NOT_UTF8
            continue
        try:
            if not entry.is_dir():
                dropped[name] = "not in a person's folder"
            elif paths := _possible_photos(entry, dropped):
                people[name] = paths
        except OSError as error:
            dropped[name] = f"cannot be read ({error.strerror})"
    if not people:
        raise InputError(
            f"{folder} has no people: no sub-folder has a usable file. {_reasons(dropped)}".rstrip(),
            fix="Make one sub-folder per person and put two or more photos into each.",
        )
    return people, dropped


def _possible_photos(folder: Path, dropped: dict[str, str]) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        name = _readable(path.name)
        if path.is_dir():
            dropped[f"{folder.name}/{name}"] = "a folder within a person's folder"
        elif name.startswith(".") or path.suffix.lower() in ENDINGS:
            continue
        elif name != path.name:
            dropped[f"{folder.name}/{name}"] = _NOT_UTF8
        else:
            found.append(path)
    return found


def _readable(name: str) -> str:
    """Return a file's name with escapes for the bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class _PhotoReader:
    """Reads people's photos, and records what is left out: photos in `dropped`, captions in `unused`."""

    def __init__(
        self,
        detector: FaceDetector,
        recognizer: ArcFaceRecognizer,
        options: PrepareOptions,
        dropped: dict[str, str],
        unused: list[str],
    ) -> None:
        self._detector, self._recognizer = detector, recognizer
        self.options, self.dropped, self._unused = options, dropped, unused

    def read(self, person: str, paths: Sequence[Path]) -> Iterator[tuple[PreparedPhoto, Array] | None]:
        """Yield one entry per path: the photo and its thumbnail, or None if it was dropped."""
        known: dict[bytes, str] = {}
        beside = (path for path in sorted(paths[0].parent.iterdir()) if path.suffix.lower() in ENDINGS)
        captions = Captions(paths, [path for path in beside if path.is_file() and not path.name.startswith(".")])
        self._unused += [f"{person}/{_readable(name)}" for name in captions.unused]
        for path in paths:
            try:
                pixels = load_photo(path)
                digest = hashlib.sha256(pixels.tobytes()).digest()
                if digest in known:
                    raise InputError(f"The same image as {known[digest]}.", fix="One is enough.")
                photo = self._prepared(person, path, pixels, captions.of(path))
                known[digest] = path.name
            except InputError as error:
                self.dropped[f"{person}/{path.name}"] = error.problem
                yield None
                continue
            yield photo, thumbnail(pixels)

    def _prepared(self, person: str, path: Path, pixels: Array, caption: str | None) -> PreparedPhoto:
        size, (height, width) = self.options.size, pixels.shape[:2]
        if min(height, width) * _ENLARGED < size:
            raise InputError(
                f"Too small: {width} × {height} would have to be enlarged more than {_ENLARGED:.0f} times for "
                f"{size} × {size}.",
                fix="Use a larger photo or a smaller --photo-size.",
            )
        found = find_faces(self._detector, pixels)
        face = choose_face(found, photo_size=(width, height))
        others = [other for other in plausible_faces(found, (width, height)) if other is not face]
        if any(other.area > _RIVAL * face.area for other in others):
            raise InputError(
                "Two faces of about the same size: it is not clear whose photo this is.", fix="Crop the photo."
            )
        target, crop = _target(pixels, face, size)
        return PreparedPhoto(
            person=person,
            source=path.name,
            target=target,
            face=align(pixels, face.landmarks, portrait_template(), self.options.crop_size),
            embedding=self._recognizer.embed(align(pixels, face.landmarks, ARCFACE_TEMPLATE, SIZE)),
            original_size=(height, width),
            crop=crop,
            caption=caption,
        )


def _target(pixels: Array, face: Face, size: int) -> tuple[Array, tuple[int, int]]:
    """Scale the shorter side to `size` and crop a square, moved off center only as far as the face requires."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    scaled = Image.fromarray(pixels).resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.LANCZOS
    )
    corner = []
    for extent, low, high in ((scaled.height, face.box[1], face.box[3]), (scaled.width, face.box[0], face.box[2])):
        start = (extent - size) / 2
        start = min(start, low * scale)  # the face's near edge is inside,
        start = max(start, high * scale - size) if (high - low) * scale <= size else start  # and its far edge
        corner.append(int(np.clip(round(start), 0, extent - size)))
    top, left = corner
    return np.asarray(scaled.crop((left, top, left + size, top + size))), (top, left)


def _nobody_left(folder: Path, held_out: int, dropped: dict[str, str]) -> InputError:
    if held_out:
        return InputError(
            f"All {held_out} usable photos in {folder} are of people who are held out; none is left to train on.",
            fix="Give a smaller --validation, another --split-seed, or more people.",
        )
    return InputError(
        f"No photo in {folder} can be used. {_reasons(dropped)}",
        fix="Use sharp photos, each with one face seen from the front, two or more per person.",
    )


def _reasons(dropped: dict[str, str]) -> str:
    reasons = [f"{name}: {reason}" for name, reason in list(dropped.items())[:3]]
    more = f" (and {len(dropped) - 3} more)" if len(dropped) > 3 else ""
    return f"{' '.join(reasons)}{more}"
