"""The world's own images of the prompts, which show how a perfect generator would score."""

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
    """Draws the person of a portrait according to a caption; a `Generator`.

    Args:
        people: how many people outside the training data it knows, as in `world:heldout:N`.
    """

    batch = 4

    def __init__(self, people: int) -> None:
        self._numbers = {
            subject.photo.tobytes(): FIRST_HELD_OUT + place for place, subject in enumerate(world_people(people))
        }

    def enroll(self, photo: Image.Image) -> Any:
        """Return the person that a portrait shows."""
        number = self._numbers.get(photo.tobytes())
        if number is None:
            raise InputError("The photo is not a portrait from the world.", fix="Evaluate the people of world:heldout.")
        return person(number)

    def generate(
        self, person: Person, prompts: Sequence[str], noise_seeds: Sequence[int], stylized: bool
    ) -> list[Image.Image]:
        """Return one image per caption; pose, light and all else that it leaves open follow from the seed."""
        return [
            render(person, captioned(prompt, seed), PORTRAIT_SIZE)
            for prompt, seed in zip(prompts, noise_seeds, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return the description of the world."""
        return {"kind": "world", "size": [PORTRAIT_SIZE, PORTRAIT_SIZE], "settings": {}}
