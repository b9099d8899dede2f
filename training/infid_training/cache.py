"""The frozen networks' outputs for prepared photos, on disk: most of the cost of a full-size step, paid once.

There is one safetensors file per shard, named after a hash of everything it was made from, so that a changed shard or
model makes a new file. Files are written atomically, so an interrupted run resumes at the next shard. The folder can be
deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infid_engines.atomic_files import locked, whole_file
from infid_engines.errors import InputError
from infid_engines.manifest import canonical_key
from infid_engines.progress import Stage
from infid_export.model.sources import ModelSource
from infid_training.base_model import encoder_fingerprint
from infid_training.encode import PhotoEncoders
from infid_training.photo_folders import References, Targets
from infid_training.shards import Shard, ShardIndex, check_shard, read_shard

_VERSION = 1
_NAMES = "infid_photos"
_BATCH = 4


def cached_file(cache: Path, shard: Shard, encoders: str) -> Path:
    """Return where a shard's cached outputs are, or will be.

    Args:
        cache: the cache folder.
        shard: see `ShardIndex`.
        encoders: see `encoder_fingerprint`.
    """
    key = canonical_key({"version": _VERSION, "shard": shard.sha256, "encoders": encoders})
    return cache / f"{Path(shard.file).stem}.{key[:16]}.safetensors"


def fill_cache(
    folder: Path, cache: Path, source: ModelSource, stage: Stage, device: torch.device, rank: int = 0, ranks: int = 1
) -> None:
    """Make the missing cache files; the networks are loaded only if any are missing, and are freed afterwards.

    Args:
        folder: the shards' folder.
        cache: folder to write to.
        source: the model.
        stage: shown the progress.
        device: device to compute on.
        rank: index of this process; each makes its share of the files.
        ranks: number of processes.

    Raises:
        InputError: a shard cannot be read, is not the one in the index or does not fit this model, or the disk is full.
    """
    index = ShardIndex.load(folder)
    _check(index, source)
    encoders = encoder_fingerprint(source)
    # divided among the processes before looking for missing files, since another process may add one meanwhile
    files = {cached_file(cache, shard, encoders): shard for shard in index.shards[rank::ranks]}
    missing = {path: shard for path, shard in files.items() if not path.is_file()}
    if not missing:
        return
    networks = PhotoEncoders(source, device)
    done, total = 0, sum(shard.photos for shard in missing.values())
    for path, shard in missing.items():
        with locked(cache / f".{path.name}.lock"):
            if path.is_file():  # another run has made it meanwhile
                done += shard.photos
                continue
            check_shard(folder, shard)
            parts: list[dict[str, Tensor]] = []
            names: list[tuple[str, str]] = []
            photos = read_shard(folder / shard.file)
            while batch := list(islice(photos, _BATCH)):
                parts.append(networks.encode(batch))
                names += [(photo.person, photo.source) for photo in batch]
                done += len(batch)
                stage.update(done / total, f"photo {done} of {total}")
            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            with whole_file(path) as partial:
                save_file(tensors, partial, metadata={_NAMES: json.dumps(names)})


def photos_fingerprint(shards: Sequence[Shard], encoders: str) -> str:
    """Return a key that changes when the shards or their encoders change; arguments as for `cached_file`."""
    return canonical_key({"shards": [shard.sha256 for shard in shards], "encoders": encoders})


class ShardedPhotos:
    """The cached photos of a split, read row by row from mapped files; see `Photos`.

    Args:
        folder: the shards' folder.
        cache: cache folder, filled for this model.
        source: the model.
        split: `train` or `validation`.

    Raises:
        InputError: a cache file cannot be read.
    """

    def __init__(self, folder: Path, cache: Path, source: ModelSource, split: str) -> None:
        encoders = encoder_fingerprint(source)
        self._with_text = source.config.trained_with_text
        self._files: list[Any] = []
        self._rows: list[tuple[int, int]] = []
        people: list[str] = []
        names: list[str] = []
        shards = ShardIndex.load(folder).of(split)
        for shard in shards:
            path = cached_file(cache, shard, encoders)
            try:
                file = safe_open(path, framework="pt")
                photos = json.loads(file.metadata()[_NAMES])  # type: ignore[no-untyped-call]
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"The cache file {path} cannot be read ({error}).", fix="Delete it; the next run makes it again."
                ) from error
            self._rows += [(len(self._files), row) for row in range(len(photos))]
            self._files.append(file)
            people += [person for person, _ in photos]
            names += [f"{person}/{name}" for person, name in photos]
        numbers = {person: number for number, person in enumerate(dict.fromkeys(people))}
        self._people = torch.tensor([numbers[person] for person in people], dtype=torch.int64)
        self._names = names
        self._fingerprint = photos_fingerprint(shards, encoders)

    @property
    def people(self) -> Tensor:
        """Return the number of each photo's person."""
        return self._people

    @property
    def names(self) -> Sequence[str]:
        """Return `person/photo`."""
        return self._names

    @property
    def fingerprint(self) -> str:
        """Return a hash of the shards and the networks."""
        return self._fingerprint

    def targets(self, indices: Tensor) -> Targets:
        """Return photos as targets."""
        texts = [self._read(name, indices) for name in ("prompt_embeds", "pooled_prompt_embeds") if self._with_text]
        return Targets(self._read("latents", indices), self._read("time_ids", indices), *texts)

    def references(self, indices: Tensor) -> References:
        """Return photos as references."""
        return References(self._read("clip_features", indices), self._read("face_embeddings", indices))

    def _read(self, name: str, indices: Tensor) -> Tensor:
        places = [self._rows[index] for index in indices.tolist()]
        return torch.cat([self._files[file].get_slice(name)[row : row + 1] for file, row in places])


def _check(index: ShardIndex, source: ModelSource) -> None:
    """Reject shards whose sizes do not fit the model."""
    crop, width = int(source.architecture.image_encoder["image_size"]), source.config.face_width
    wanted = {"aligned faces of": (index.crop_size, crop), "face embeddings of": (index.face_width, width)}
    for what, (found, needed) in wanted.items():
        if found != needed:
            raise InputError(
                f"The shards have {what} {found}; {source.name} needs {needed}.",
                fix=f"Prepare the photos again for this model: --crop-size {crop}, a recognizer of width {width}.",
            )
