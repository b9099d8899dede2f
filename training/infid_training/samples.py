"""Sample images of a run: fixed people × fixed prompts, through the reference pipeline, as one grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from infid_engines.atomic_files import whole_file
from infid_export.model.identity import IdentityModules
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import ModelSource
from infid_training.cache import ShardedPhotos
from infid_training.shards import ShardIndex, read_shard

Array = np.ndarray[Any, Any]

PROMPTS = ("a photo of a person", "a pencil sketch of a person", "an oil painting of a person, at the beach")
_PEOPLE = 4
_GAP = 4  # pixels


@dataclass(frozen=True)
class FixedPerson:
    """A person who is in every grid of a run.

    Args:
        index: index of the reference photo.
        face: `[crop, crop, 3]` uint8 RGB, shown beside the images.
    """

    index: int
    face: Array


class SampleGrid:
    """Draws the grid: one row per person, with the reference first, then one image per prompt.

    Args:
        source: the model; text encoders and VAE are loaded for each grid and freed after it.
        unet: the UNet used in training.
        photos: the split that the people belong to.
        people: see `fixed_people`.
        prompts: prompts of the images.
        steps: steps per image; None means the model's default.
    """

    def __init__(
        self,
        source: ModelSource,
        unet: Any,
        photos: ShardedPhotos,
        people: Sequence[FixedPerson],
        prompts: Sequence[str] = PROMPTS,
        steps: int | None = None,
    ) -> None:
        self._source, self._unet, self._photos = source, unet, photos
        self._people, self._prompts = people, list(prompts)
        own = source.architecture.sampling
        self._sampling = own if steps is None else replace(own, steps=steps)

    @torch.no_grad()
    def __call__(self, step: int, identity: IdentityModules, folder: Path) -> None:
        """Write `step-00001000.png`.

        Args:
            step: the run's step.
            identity: the weights at that step.
            folder: folder to write to.
        """
        trained = _TrainedSource(self._source, self._unet, identity)
        pipe = InfiniteIDPipeline.from_source(trained, self._unet.dtype)
        pipe.to(self._unet.device)
        pipe.set_progress_bar_config(disable=True)
        rows = []
        for number, person in enumerate(self._people):
            size = self._source.architecture.size
            pictures = [Image.fromarray(person.face).resize((size, size), Image.Resampling.LANCZOS)]
            for prompt in self._prompts:
                result = pipe(
                    prompt, self._keys_and_values(identity, person.index), generator=np.random.default_rng(number),
                    **self._sampling.arguments(),
                )  # fmt: skip
                pictures += result.images
            rows.append(np.concatenate(list(_with_gaps(pictures)), axis=1))
        with whole_file(folder / f"step-{step:08d}.png") as partial:
            Image.fromarray(np.concatenate(rows)).save(partial, "PNG")

    def _keys_and_values(self, identity: IdentityModules, index: int) -> tuple[Tensor, Tensor]:
        """Return `[2, T, S]` keys and values; row 0 is unconditional (zero features), as in `IdentityEncoder`."""
        found = self._photos.references(torch.tensor([index]))
        both = [
            torch.cat([torch.zeros_like(each), each]).to(self._unet.device, identity.dtype)
            for each in (found.clip_features, found.face_embeddings)
        ]
        _, keys, values = identity(*both)
        return keys, values


def fixed_people(folder: Path, photos: ShardedPhotos, split: str) -> list[FixedPerson]:
    """Return the first few people of a split, each with their first photo."""
    people: dict[str, FixedPerson] = {}
    first = {name: index for index, name in reversed(list(enumerate(photos.names)))}
    for shard in ShardIndex.load(folder).of(split):
        for photo in read_shard(folder / shard.file):
            if photo.person not in people:
                people[photo.person] = FixedPerson(first[photo.name], photo.face)
            if len(people) == _PEOPLE:
                return list(people.values())
    return list(people.values())


class _TrainedSource:
    """The model with the run's own UNet and identity weights, so that neither is loaded again."""

    def __init__(self, source: ModelSource, unet: Any, identity: IdentityModules) -> None:
        self.name, self.architecture, self.config = source.name, source.architecture, identity.config
        self.zero_negative, self.notes, self.scheduler = source.zero_negative, source.notes, source.scheduler
        self.license = source.license
        self._own = {
            "unet": unet,
            "identity": deepcopy(identity).eval().requires_grad_(False),
            "image_encoder": nn.Identity(),  # not used: the faces' features are cached
        }
        self._source = source

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        module: nn.Module = self._own[component] if component in self._own else self._source.load(component, dtype)
        return module.to(dtype) if component == "identity" else module

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        yield from self.load(component, dtype).named_parameters()

    def empty(self, component: str) -> nn.Module:
        return self._source.empty(component)

    def fingerprint(self, component: str) -> str:
        return self._source.fingerprint(component)

    def tokenizers(self) -> tuple[str, str]:
        return self._source.tokenizers()

    def tokenizer_fingerprint(self) -> str:
        return self._source.tokenizer_fingerprint()


def _with_gaps(pictures: Sequence[Image.Image]) -> Iterator[Array]:
    for picture in pictures:
        yield np.pad(np.asarray(picture), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
