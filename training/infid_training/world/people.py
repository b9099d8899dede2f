"""People of the world: the traits that make a face the same face in every image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FIRST_HELD_OUT = 1_000_000  # training people, portraits and scenes have smaller numbers
_SKINS = ("light", "tan", "dark")
_HAIRS = ("black", "brown", "red", "blond", "grey")


@dataclass(frozen=True)
class Person:
    """One person; every trait is continuous, from 0 to 1, and the same in all images of the person.

    Args:
        face_width: narrow to broad.
        face_length: short to long.
        jaw: pointed to square.
        skin_tone: light to dark.
        skin_warmth: pinkish to yellowish.
        hair_color: along black, brown, red, blond, grey.
        hair_length: cropped to below the shoulders.
        hair_volume: flat to voluminous.
        fringe: high hairline to a fringe above the brows.
        eye_spacing: close to wide.
        eye_size: small to large.
        eye_tilt: outer corners low to high.
        iris: along brown, green, blue, grey.
        brow_thickness: thin to thick.
        brow_arch: straight to arched.
        nose_length: short to long.
        nose_width: narrow to broad.
        mouth_width: narrow to wide.
        lips: thin to full.
        ears: small to large.
        freckles: none below 0.6, then more.
        mole_across: position of a mole, left to right.
        mole_down: its position, cheekbone to chin.
        mole_size: none below 0.5, then larger.
        beard: none below 0.6, then fuller.
        glasses: none below 0.65, then narrow to large frames.
        frame_color: color of the glasses' frame, dark to bright.
    """

    face_width: float
    face_length: float
    jaw: float
    skin_tone: float
    skin_warmth: float
    hair_color: float
    hair_length: float
    hair_volume: float
    fringe: float
    eye_spacing: float
    eye_size: float
    eye_tilt: float
    iris: float
    brow_thickness: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lips: float
    ears: float
    freckles: float
    mole_across: float
    mole_down: float
    mole_size: float
    beard: float
    glasses: float
    frame_color: float

    def vector(self) -> Array:
        """Return the traits as `[27]` fp32."""
        return np.array([getattr(self, each.name) for each in fields(self)], np.float32)

    def describe(self) -> str:
        """Return how a caption describes the person: skin, hair, and what stands out."""
        skin = _SKINS[min(int(len(_SKINS) * self.skin_tone), len(_SKINS) - 1)]
        color = _HAIRS[round((len(_HAIRS) - 1) * self.hair_color)]
        length = "short" if self.hair_length < 0.3 else "long" if self.hair_length > 0.6 else "medium"
        marks = [
            name
            for name, worn in (
                ("glasses", self.glasses > 0.65), ("a beard", self.beard > 0.65), ("freckles", self.freckles > 0.65),
            )
            if worn
        ]  # fmt: skip
        return " and ".join([f"a person with {skin} skin, {length} {color} hair", *marks])


def person(seed: int) -> Person:
    """Return the person with a seed; the same seed always gives the same person."""
    values = np.random.default_rng((seed, 0x9E09)).random(len(fields(Person)))
    return Person(*(float(value) for value in values))
