"""Enroll a person from a photo, and generate an image.

Usage::

    python examples/1_enroll_and_generate.py --engines infid-engines [--photo photo.png] [-o pictures]

Without a photo, it draws one of a person that the demo model has not seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from infid_export import Person, Pipeline
from infid_training.world import drawing, people, scenes

PROMPT = "a photo of a person wearing a red suit, at the beach"


def main() -> None:
    """Enroll, save the person to a file, and generate from the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--engines", type=Path, default=Path("infid-engines"))
    parser.add_argument("--photo", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("pictures"))
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)

    photo = arguments.photo
    if photo is None:
        photo = arguments.output / "photo.png"
        who = people.FIRST_HELD_OUT
        drawing.render(people.person(who), scenes.portrait(who)).save(photo)

    with Pipeline.load(arguments.engines) as pipe:
        print(pipe.choice)  # the backend, and why
        person = pipe.enroll(photo, name="Anna")
        print(person.faces[0])  # how many faces there were, and which was chosen
        person.save(arguments.output / "anna.safetensors")

        anna = Person.load(arguments.output / "anna.safetensors")
        # the prompt asks for no style, so AdaIN-mean is off, which preserves more of the person
        (image,) = pipe.generate(PROMPT, anna, seed=0, style_strength=0.0)
        image.save(arguments.output / "beach.png")
    print(arguments.output / "beach.png")


if __name__ == "__main__":
    main()
