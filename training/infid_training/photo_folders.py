"""What training reads for each photo: the frozen networks' outputs, computed beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infid_engines.errors import InputError


@dataclass(frozen=True)
class Targets:
    """The photos that the model learns to generate.

    Args:
        latents: `[B, 4, h, w]`, scaled as the UNet takes them.
        time_ids: `[B, 6]`, original height and width, crop's top and left, target height and width in pixels.
        prompt_embeds: `[B, 77, D]` of the captions; None if the run trains with text off.
        pooled_prompt_embeds: `[B, P]`, likewise.
    """

    latents: Tensor
    time_ids: Tensor
    prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None


@dataclass(frozen=True)
class References:
    """The photos that show who to generate.

    Args:
        clip_features: `[B, clip_tokens, clip_width]`, the image encoder's last hidden state of the aligned faces.
        face_embeddings: `[B, face_width]`, L2-normalized.
    """

    clip_features: Tensor
    face_embeddings: Tensor


class Photos(Protocol):
    """Photos of people, numbered from 0; every photo can be a target and a reference."""

    @property
    def people(self) -> Tensor:
        """Return each photo's person as a number, `[N]` int64."""

    @property
    def names(self) -> Sequence[str]:
        """Return the name of each photo for messages, such as `anna/beach.jpg`."""

    @property
    def fingerprint(self) -> str:
        """Return a key that changes when the photos or the frozen networks change."""

    def targets(self, indices: Tensor) -> Targets:
        """Return photos as targets, by `[B]` int64 indices."""

    def references(self, indices: Tensor) -> References:
        """Return photos as references, by `[B]` int64 indices."""


@dataclass(frozen=True)
class CachedPhotos:
    """N photos whose tensors are in memory or memory-mapped; see `Targets` and `References`.

    Args:
        latents: `[N, 4, h, w]`.
        clip_features: `[N, clip_tokens, clip_width]`.
        face_embeddings: `[N, face_width]`.
        people: `[N]` int64.
        time_ids: `[N, 6]`.
        names: N names; empty means `photo 0` and so on.
        prompt_embeds: `[N, 77, D]`, if the run trains with text.
        pooled_prompt_embeds: `[N, P]`, likewise.
        fingerprint: see `Photos`; empty means a hash of people and face embeddings.

    Raises:
        InputError: the tensors do not all have N photos.
    """

    latents: Tensor
    clip_features: Tensor
    face_embeddings: Tensor
    people: Tensor
    time_ids: Tensor
    names: Sequence[str] = ()
    prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """Check the lengths, and fill in what was left out."""
        count = len(self.people)
        if not self.names:
            object.__setattr__(self, "names", [f"photo {index}" for index in range(count)])
        if not self.fingerprint:
            digest = hashlib.sha256(self.people.numpy().tobytes())
            digest.update(self.face_embeddings.float().numpy().tobytes())
            object.__setattr__(self, "fingerprint", digest.hexdigest())
        lengths = {
            name: len(value)
            for name, value in vars(self).items()
            if name != "fingerprint" and value is not None and len(value) != count
        }
        if lengths:
            raise InputError(
                f"`people` has {count} photos, but the others have {lengths}.", fix="Give one entry per photo in each."
            )

    def targets(self, indices: Tensor) -> Targets:
        """Return photos as targets."""
        texts = [None if each is None else each[indices] for each in (self.prompt_embeds, self.pooled_prompt_embeds)]
        return Targets(self.latents[indices], self.time_ids[indices], *texts)

    def references(self, indices: Tensor) -> References:
        """Return photos as references."""
        return References(self.clip_features[indices], self.face_embeddings[indices])


def single_photo_people(people: Tensor) -> Tensor:
    """Return the indices of the photos that are the only one of their person."""
    _, inverse, counts = torch.unique(people, return_inverse=True, return_counts=True)
    return torch.nonzero(counts[inverse] == 1).flatten()
