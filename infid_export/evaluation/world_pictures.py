"""The world's own pictures of what is asked for: how a generator without a fault would score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from infid_engines.errors import InputError
from infid_export.evaluation.set_sources import PORTRAIT_SIZE, world_people
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, Person, person
from infid_training.world.scenes import captioned


class WorldGenerator:
    """Draws the person of a portrait as a caption says; a `Generator`.

    Args:
        people: how many people that training never saw it knows; `world:heldout:N` has as many.
    """

    batch = 4

    def __init__(self, people: int) -> None:
        self._numbers = {
            subject.photo.tobytes(): FIRST_HELD_OUT + place for place, subject in enumerate(world_people(people))
        }

    def enroll(self, photo: Image.Image) -> Any:
        """Return the person whose portrait it is."""
        number = self._numbers.get(photo.tobytes())
        if number is None:
            raise InputError("It is no portrait of the world.", fix="Evaluate the people of world:heldout.")
        return person(number)

    def generate(
        self, person: Person, prompts: Sequence[str], noise_seeds: Sequence[int], stylized: bool
    ) -> list[Image.Image]:
        """Return one picture a caption; pose, light and all else that it does not say follow from the seed."""
        return [
            render(person, captioned(prompt, seed), PORTRAIT_SIZE)
            for prompt, seed in zip(prompts, noise_seeds, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return that it is the world."""
        return {"kind": "world", "size": [PORTRAIT_SIZE, PORTRAIT_SIZE], "settings": {}}
