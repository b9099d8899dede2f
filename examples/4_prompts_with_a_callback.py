"""Generate several prompts in one call, with progress from a callback and a time limit.

Usage::

    python examples/4_prompts_with_a_callback.py --engines infid-engines [--seconds 60] [-o pictures]
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import numpy as np

from infid_engines.errors import CancelledError
from infid_export import Pipeline
from infid_training.world import drawing, people, scenes

PROMPTS = [
    "a photo of a person wearing a blue dress, in a forest",
    "a pencil sketch of a person wearing a purple hoodie and a crown, in a forest",
    "an oil painting of a person wearing a white suit and a beanie, at night",
]


def on_step(index: int, timestep: float, latents: np.ndarray) -> None:
    """Print a line per step; a server would send a preview made from the latents."""
    print(f"step {index + 1} at timestep {timestep:.0f}: latents {latents.shape}, deviation {latents.std():.2f}")


def main() -> None:
    """Generate one image per prompt, or stop when time is up."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--engines", type=Path, default=Path("infid-engines"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-o", "--output", type=Path, default=Path("pictures"))
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)
    who = people.FIRST_HELD_OUT
    portrait = drawing.render(people.person(who), scenes.portrait(who))

    cancel = threading.Event()
    timer = threading.Timer(arguments.seconds, cancel.set)
    timer.start()
    try:
        with Pipeline.load(arguments.engines) as pipe:
            person = pipe.enroll(portrait)
            # the seed counts up over the prompts; more prompts than the engines' batch size run in several batches
            images = pipe.generate(PROMPTS, person, seed=7, callback=on_step, cancel=cancel)
    except CancelledError as stopped:
        print(stopped)
        return
    finally:
        timer.cancel()
    for number, image in enumerate(images):
        image.save(arguments.output / f"{number}.png")
        print(arguments.output / f"{number}.png")


if __name__ == "__main__":
    main()
