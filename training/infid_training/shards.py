"""WebDataset shards of prepared photos: tar files in which all members of a photo have the same key before the dot.

A photo is `00000007.target.jpg` (at the training size), `00000007.face.png` (aligned, as the image encoder takes it),
`00000007.embedding.npy` (fp32, L2-normalized) and `00000007.json`. `index.json` beside the shards describes them.
Format: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infid_engines.documents import read_json, record, sealed, unsealed
from infid_engines.errors import InputError
from infid_engines.manifest import is_inside, sha256_file
from infid_training.shard_members import embedding, facts, member_bytes, picture

INDEX, REPORT = "index.json", "report.json"
SPLITS = ("train", "validation")
_VERSION = 2
_QUALITY = 95  # of the target's JPEG, color at full resolution
_AGAIN = "Prepare the photos again with `infid-export prepare`."

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PreparedPhoto:
    """One photo as training takes it.

    Args:
        person: name of the person's folder.
        source: name of the photo's file.
        target: `[size, size, 3]` uint8 RGB.
        face: `[crop, crop, 3]` uint8 RGB, aligned.
        embedding: `[face_width]` fp32.
        original_size: height and width of the photo in pixels.
        crop: top and left of the target in pixels, in the photo scaled so that its shorter side is the target's.
        caption: the photo's caption; None if there was none.
    """

    person: str
    source: str
    target: Array
    face: Array
    embedding: Array
    original_size: tuple[int, int]
    crop: tuple[int, int]
    caption: str | None = None

    @property
    def name(self) -> str:
        """The photo's name in messages."""
        return f"{self.person}/{self.source}"

    @property
    def time_ids(self) -> list[int]:
        """SDXL's size conditioning: original height and width, crop's top and left, target height and width."""
        return [*self.original_size, *self.crop, *self.target.shape[:2]]


@dataclass(frozen=True)
class Shard:
    """One shard's entry in the index."""

    file: str
    split: str
    photos: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """The contents of a folder of shards.

    Args:
        size: size of the targets in pixels.
        crop_size: size of the aligned faces in pixels.
        face_width: length of the embeddings.
        single_photo: whether people with one photo were left out (`refuse`) or are their own pair (`own-pair`).
        recognizer: sha256 of the recognizer's file, see `ArcFaceRecognizer.fingerprint`.
        split_seed: decides, with the people's names, who is held out.
        validation: fraction of the people held out.
        shards: the shards, in order.
        recognizer_name: the recognizer's name in messages; empty in folders of earlier versions, like `detector`.
        detector: kind of the face detector.
    """

    size: int
    crop_size: int
    face_width: int
    single_photo: str
    recognizer: str
    split_seed: int
    validation: float
    shards: tuple[Shard, ...]
    recognizer_name: str = ""
    detector: str = ""

    def of(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of a split."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def write(self, folder: Path) -> None:
        """Write `index.json`."""
        (folder / INDEX).write_text(json.dumps(sealed({"version": _VERSION, **asdict(self)}), indent=1))

    @classmethod
    def load(cls, folder: Path) -> ShardIndex:
        """Read the index.

        Raises:
            InputError: the folder has no index, or it cannot be read.
        """
        path = folder / INDEX
        if not path.is_file():
            raise InputError(f"{folder} holds no shards: it has no {INDEX}.", fix=_AGAIN)
        try:
            document = read_json(path)
            if document["version"] != _VERSION:
                raise ValueError(f"it has version {document['version']!r}, not {_VERSION}")
            values = unsealed(document)
            del values["version"]
            index = record(cls, values, "it")
            _check(index)
            return index
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}).", fix=_AGAIN) from error


def _check(index: ShardIndex) -> None:
    """Reject an index that `prepare` could not have written.

    Raises:
        ValueError: the message names the entry.
    """
    if min(index.size, index.crop_size, index.face_width) < 1:
        raise ValueError("a size is not positive")
    for shard in index.shards:
        if not is_inside(shard.file):
            raise ValueError(f"{shard.file!r} is not the name of a file within the folder")
        if shard.split not in SPLITS or shard.photos < 1:
            raise ValueError(f"{shard.file} has the split {shard.split!r} and {shard.photos} photos")


class ShardWriter:
    """Writes the shards of one split, a new one every `photos` photos; a context manager.

    Args:
        folder: folder to write to.
        split: `train` or `validation`.
        photos: number of photos per shard.
    """

    def __init__(self, folder: Path, split: str, photos: int) -> None:
        self._folder, self._split, self._photos = folder, split, photos
        self._tar: tarfile.TarFile | None = None
        self._in_shard = self._written = 0
        self.shards: list[Shard] = []

    def __enter__(self) -> ShardWriter:
        """Create the folder if it is missing; open no shard yet."""
        self._folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the last shard."""
        self._finish()

    def write(self, photo: PreparedPhoto) -> None:
        """Add a photo."""
        facts = {"person": photo.person, "source": photo.source, "original_size": photo.original_size,
                 "crop": photo.crop, "caption": photo.caption}  # fmt: skip
        embedding = io.BytesIO()
        np.save(embedding, photo.embedding, allow_pickle=False)
        self.write_members(
            {
                "target.jpg": _encoded(photo.target, "JPEG", quality=_QUALITY, subsampling=0),
                "face.png": _encoded(photo.face, "PNG"),
                "embedding.npy": embedding.getvalue(),
                "json": json.dumps(facts, ensure_ascii=False).encode(),
            }
        )

    def write_members(self, members: Mapping[str, bytes]) -> None:
        """Add a photo as `read_members` returns it."""
        if self._tar is None or self._in_shard == self._photos:
            self._finish()
            self._tar = tarfile.open(self._folder / self._file, "w")  # noqa: SIM115 (closed by _finish)
        for kind, content in members.items():
            self._add(f"{self._written:08d}.{kind}", content)
        self._in_shard += 1
        self._written += 1

    @property
    def _file(self) -> str:
        return f"{self._split}-{len(self.shards):05d}.tar"

    def _add(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # no time and no owner, so that the same photos give the same bytes
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _finish(self) -> None:
        if self._tar is not None:
            self._tar.close()
            path = self._folder / self._file
            self.shards.append(Shard(path.name, self._split, self._in_shard, sha256_file(path)))
            self._tar, self._in_shard = None, 0


def check_shard(folder: Path, shard: Shard) -> None:
    """Check a shard's file against its hash.

    Raises:
        InputError: it is missing, or not the one in the index.
    """
    path = folder / shard.file
    if not path.is_file():
        raise InputError(f"There is no shard {path}.", fix=_AGAIN)
    if sha256_file(path) != shard.sha256:
        raise InputError(f"The shard {path} is damaged or was replaced: its hash is not that in {INDEX}.", fix=_AGAIN)


def read_shard(path: Path) -> Iterator[PreparedPhoto]:
    """Yield the photos of a shard, in order.

    Raises:
        InputError: it is missing, cut off, or not a shard of prepared photos.
    """
    with _explained(path):
        for members in read_members(path):
            yield _photo(members)


def read_members(path: Path) -> Iterator[dict[str, bytes]]:
    """Yield the files of each photo of a shard, in order, keyed by what follows the first dot of their names.

    Raises:
        InputError: as for `read_shard`.
    """
    with _explained(path), tarfile.open(path) as tar:
        members: dict[str, bytes] = {}
        current = ""
        for member in tar:
            key, _, kind = member.name.partition(".")
            if members and key != current:
                yield members
                members = {}
            members[kind], current = member_bytes(tar, member), key
        if members:
            yield members


def read_captions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the caption of each photo of a shard, empty if there is none; images are not read.

    Raises:
        InputError: as for `read_shard`.
    """
    with _explained(path), tarfile.open(path) as tar:
        for member in tar:
            if member.name.partition(".")[2] == "json" and (file := tar.extractfile(member)):
                facts = json.load(file)
                yield f"{facts['person']}/{facts['source']}", str(facts["caption"] or "").strip()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"The shard {path} cannot be read ({type(error).__name__}: {error}).", fix=_AGAIN) from error


def _photo(members: Mapping[str, bytes]) -> PreparedPhoto:
    said = facts(members)
    target, face = (picture(members, kind) for kind in ("target.jpg", "face.png"))
    return PreparedPhoto(
        said.person, said.source, target, face, embedding(members), said.original_size, said.crop, said.caption
    )


def _encoded(pixels: Array, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()
