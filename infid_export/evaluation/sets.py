"""Evaluation sets: people with a reference photo each, prompts, and seeds. Every person gets every prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from infid_engines.errors import InputError


@dataclass(frozen=True)
class Subject:
    """A person of the set.

    Args:
        name: unique in the set.
        photo: the reference, RGB.
    """

    name: str
    photo: Image.Image


@dataclass(frozen=True)
class Prompt:
    """A prompt of the set.

    Args:
        text: text of the prompt.
        stylized: whether it asks for a style other than a photo's.
    """

    text: str
    stylized: bool = False


@dataclass(frozen=True)
class Request:
    """One image to generate.

    Args:
        person: the person it shows.
        prompt: its prompt.
        seed: one of the set's seeds.
        noise_seed: seed of the initial noise, the same for every generator.
    """

    person: Subject
    prompt: Prompt
    seed: int
    noise_seed: int


@dataclass(frozen=True)
class EvaluationSet:
    """People, prompts and seeds.

    Args:
        name: a few words on its source.
        people: at least one.
        prompts: at least one.
        seeds: at least one; more of them average out the noise.

    Raises:
        InputError: one of them is empty, or a name or prompt occurs twice.
    """

    name: str
    people: tuple[Subject, ...]
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Reject an empty set and repetitions."""
        parts: dict[str, Sequence[Any]] = {
            "people": [subject.name for subject in self.people],
            "prompts": [prompt.text for prompt in self.prompts],
            "seeds": self.seeds,
        }
        for part, values in parts.items():
            if not values:
                raise InputError(f"The evaluation set has no {part}.", fix="Give at least one.")
            twice = sorted({str(value) for value in values if list(values).count(value) > 1})
            if twice:
                raise InputError(f"The evaluation set's {part} contain '{twice[0]}' twice.", fix="Remove one of them.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.people) * len(self.prompts) * len(self.seeds)

    def requests(self, person: Subject) -> Iterator[Request]:
        """Yield the requests for one person."""
        for prompt in self.prompts:
            for seed in self.seeds:
                # depends on the words and not on their order, so that a larger set contains the images of a smaller one
                digest = hashlib.sha256(f"{person.name}\n{prompt.text}\n{seed}".encode()).digest()
                yield Request(person, prompt, seed, int.from_bytes(digest[:4], "little"))

    def fingerprint(self) -> str:
        """Return a sha256 that is the same for the same photos, prompts and seeds in the same order."""
        digest = hashlib.sha256()
        for subject in self.people:
            pixels = np.asarray(subject.photo.convert("RGB"))
            digest.update(f"{subject.name}\n{pixels.shape}".encode() + pixels.tobytes())
        digest.update(repr([(prompt.text, prompt.stylized) for prompt in self.prompts]).encode())
        digest.update(repr(self.seeds).encode())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the description of the set for a document."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "people": [subject.name for subject in self.people],
            "prompts": [{"text": prompt.text, "stylized": prompt.stylized} for prompt in self.prompts],
            "seeds": list(self.seeds),
        }
