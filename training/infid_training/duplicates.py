"""Who must stay on one side of the split: people who share an image, and people whose names differ only in spelling.

An image is compared as 16 × 16 gray values, with their mean subtracted and normalized to length 1, so that size, file
format and brightness hardly matter. Its mirror image is compared too. Measured: copies of 240 drawn portraits (scaled
to a third, as JPEG of quality 30, in 64 colors, darkened, without color) have a cosine of at least 0.995 with their
original. The highest cosine of two different portraits is 0.952; of 100 tightly cropped faces of LFW it is 0.891. The
64 bits of a dHash separate the two less well: a copy differs in up to 8 bits, and different portraits in as few as 2,
since noise decides the bits of a plain background. Crops are not detected: with 5 % of each side gone, the cosine is
0.6 to 1.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from infid_training.shards import SPLITS

SIDE = 16
_SAME = 0.98  # cosine
_PLAIN = 2.0  # standard deviation in gray levels, below which an image has nothing to compare
_BLOCK = 4096

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Link:
    """Two people who belong on one side, and why.

    Args:
        person: the later of the two.
        other: the earlier one.
        reason: what they share.
    """

    person: str
    other: str
    reason: str


def thumbnail(pixels: Array) -> Array:
    """Return the thumbnail by which an image is compared.

    Args:
        pixels: `[H, W, 3]` uint8 RGB.

    Returns:
        `[256]` uint8 gray values.
    """
    gray = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(gray).reshape(-1)


def link_people(photos: Sequence[tuple[str, str]], thumbnails: Sequence[Array]) -> list[Link]:
    """Find people who share an image or a name.

    Args:
        photos: person and file name of each photo, grouped by person.
        thumbnails: thumbnails of the same photos, see `thumbnail`.

    Returns:
        Links that join every group; none is redundant.
    """
    groups = _Groups()
    first_of: dict[str, str] = {}
    people = {person: number for number, person in enumerate(dict.fromkeys(person for person, _ in photos))}
    for person in people:
        other = first_of.setdefault(_folded(person), person)
        groups.join(person, other, f"has the same name as {other}, written differently")
    numbers = np.array([people[person] for person, _ in photos], np.int64)
    vectors = _vectors(thumbnails)
    mirrored = vectors.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(vectors.shape)
    for row in range(0, len(vectors), _BLOCK):
        for column in range(row, len(vectors), _BLOCK):
            block = vectors[column : column + _BLOCK].T
            same = np.maximum(vectors[row : row + _BLOCK] @ block, mirrored[row : row + _BLOCK] @ block) >= _SAME
            same &= numbers[row : row + _BLOCK, None] < numbers[column : column + _BLOCK]
            for one, two in np.argwhere(same):
                first, second = photos[row + one], photos[column + two]
                groups.join(second[0], first[0], f"{'/'.join(second)} is the same image as {'/'.join(first)}")
    return groups.links


def keep_together(splits: Mapping[str, str], links: Sequence[Link]) -> dict[str, str]:
    """Return the split of each person: their own, unless someone in their group is in training.

    Then the whole group goes to training, so that a person who was in training is not held out once photos are added.

    Args:
        splits: the split of each person on their own.
        links: see `link_people`.
    """
    groups = _Groups()
    for link in links:
        groups.join(link.person, link.other, link.reason)
    trained = {groups.of(person) for person, split in splits.items() if split == SPLITS[0]}
    return {person: SPLITS[0] if groups.of(person) in trained else SPLITS[1] for person in splits}


def reasons(links: Sequence[Link], splits: Mapping[str, str]) -> dict[str, str]:
    """Return the reason for each person's split, by person."""
    found: dict[str, list[str]] = {}
    for link in links:
        found.setdefault(link.person, []).append(f"with {link.other}: {link.reason}")
    return {person: f"in {splits[person]} {'; '.join(why)}" for person, why in found.items()}


class _Groups:
    """People joined step by step (union-find)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self.links: list[Link] = []

    def of(self, person: str) -> str:
        """Return the representative of a person's group."""
        while (parent := self._parents.setdefault(person, person)) != person:
            self._parents[person] = person = self._parents[parent]
        return person

    def join(self, person: str, other: str, reason: str) -> None:
        """Put two people into one group, unless they already are."""
        one, two = self.of(person), self.of(other)
        if one != two:
            self._parents[one] = two
            self.links.append(Link(person, other, reason))


def _vectors(thumbnails: Sequence[Array]) -> Array:
    """Return `[N, 256]` fp32 of mean 0 and length 1, or 0 for plain images."""
    values = np.array(thumbnails, np.float32).reshape(-1, SIDE * SIDE)
    values -= values.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(lengths < _PLAIN * SIDE, 0, values / np.maximum(lengths, 1))


def _folded(name: str) -> str:
    """Return a name with case, Unicode form and spaces normalized."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())
