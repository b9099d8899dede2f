"""What changes from image to image, and the caption that describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from infid_engines.errors import InputError

STYLES = ("photo", "pencil sketch", "flat poster", "oil painting", "pixel art")
PLACES = ("at the beach", "in a forest", "in the city", "in a room", "in the snow", "at night")
CLOTHES = ("t-shirt", "striped sweater", "suit", "hoodie", "dress")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
HATS = ("", "straw hat", "baseball cap", "beanie", "crown")
ACTIONS = ("", "holding a cup", "holding a flower", "reading a book", "waving")
# One in this many combinations of style, place, clothes and hat is kept out of training.
_HELD_OUT = 9


@dataclass(frozen=True)
class Scene:
    """One image's free choices; angles are in radians, the rest are fractions of the image or of their range.

    Args:
        style: how it is drawn, one of `STYLES`.
        place: one of `PLACES`.
        clothes: one of `CLOTHES`.
        color: color of the clothes, one of `COLORS`.
        hat: one of `HATS`; empty means none.
        action: one of `ACTIONS`; empty means none.
        yaw: head turned to the image's right.
        pitch: head lowered.
        roll: head tilted clockwise.
        scale: half the head's height.
        across: horizontal position of the head's center.
        down: vertical position of the head's center.
        smile: -1 to 1.
        mouth_open: 0 to 1.
        eyes_closed: 0 to 1.
        gaze: -1 to 1, to the image's right.
        light: direction of the light; 0 means from above.
        contrast: contrast of light and shadow, 0 to 1.
        warmth: warmth of the light, -1 to 1.
        seed: seed of the background's details.
    """

    style: str = "photo"
    place: str = "in a room"
    clothes: str = "t-shirt"
    color: str = "blue"
    hat: str = ""
    action: str = ""
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 0.27
    across: float = 0.5
    down: float = 0.46
    smile: float = 0.2
    mouth_open: float = 0.0
    eyes_closed: float = 0.0
    gaze: float = 0.0
    light: float = 0.5
    contrast: float = 0.4
    warmth: float = 0.0
    seed: int = 0

    @property
    def held_out(self) -> bool:
        """Whether this combination of style, place, clothes and hat is kept out of training; portraits never are."""
        if self.style == "photo" and not self.hat:
            return False
        sizes = ((self.style, STYLES), (self.place, PLACES), (self.clothes, CLOTHES), (self.hat, HATS))
        number = 0
        for value, values in sizes:
            number = number * len(values) + values.index(value)
        # multiplied by an odd number, so that neighbors differ in the modulus
        return number * 2654435761 % 2**32 % _HELD_OUT == 0

    def caption(self, who: str = "a person") -> str:
        """Return the caption of the image; `who` may describe the person in more detail (`Person.describe`)."""
        words = f"{_with_article(self.style)} of {who} wearing {_with_article(f'{self.color} {self.clothes}')}"
        words += f" and {_with_article(self.hat)}" if self.hat else ""
        words += f", {self.action}" if self.action else ""
        return f"{words}, {self.place}"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def scene(seed: int, held_out: bool = False) -> Scene:
    """Draw a scene.

    Args:
        seed: the same seed always gives the same scene.
        held_out: choose from the combinations kept out of training, instead of from the others.
    """
    random = np.random.default_rng((seed, 0x5CE2))
    while True:
        found = _draw(random)
        if found.held_out == held_out:
            return found


def captioned(caption: str, seed: int) -> Scene:
    """Draw a scene that a caption describes, as `Scene.caption` writes it with the default `who`.

    Args:
        caption: gives style, place, clothes, color, hat and action.
        seed: seed of everything that the caption does not give.

    Raises:
        InputError: the world has no such caption.
    """
    said = _plain_scenes().get(caption)
    if said is None:
        raise InputError(
            f"'{caption}' is not a caption of the world.", fix="Give one of its own, as world:heldout does."
        )
    return replace(
        scene(seed), style=said.style, place=said.place, clothes=said.clothes, color=said.color, hat=said.hat,
        action=said.action,
    )  # fmt: skip


@cache
def _plain_scenes() -> dict[str, Scene]:
    """Return a scene for every caption."""
    chosen = product(STYLES, PLACES, CLOTHES, COLORS, HATS, ACTIONS)
    return {each.caption(): each for each in (Scene(*choices) for choices in chosen)}


def portrait(seed: int) -> Scene:
    """Draw a plain frontal photo, as a reference for a person."""
    found = scene(seed)
    return replace(
        found, style="photo", hat="", action="", yaw=0.3 * found.yaw, pitch=0.3 * found.pitch, roll=0.3 * found.roll,
        eyes_closed=0.0, scale=0.31, across=0.5, down=0.46,
    )  # fmt: skip


def _draw(random: np.random.Generator) -> Scene:
    def one(values: tuple[str, ...]) -> str:
        return values[int(random.integers(len(values)))]

    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    return Scene(
        style=one(STYLES) if random.random() < 0.6 else "photo",
        place=one(PLACES),
        clothes=one(CLOTHES),
        color=one(COLORS),
        hat=one(HATS) if random.random() < 0.4 else "",
        action=one(ACTIONS) if random.random() < 0.5 else "",
        yaw=between(-0.6, 0.6),
        pitch=between(-0.3, 0.3),
        roll=between(-0.3, 0.3),
        scale=between(0.25, 0.34),
        across=between(0.42, 0.58),
        down=between(0.44, 0.5),
        smile=between(-0.6, 1.0),
        mouth_open=max(0.0, between(-1.0, 1.0)),
        eyes_closed=1.0 if random.random() < 0.05 else 0.3 * between(0.0, 1.0),
        gaze=between(-1.0, 1.0),
        light=between(-1.2, 1.2),
        contrast=between(0.1, 0.8),
        warmth=between(-1.0, 1.0),
        seed=int(random.integers(2**31)),
    )
