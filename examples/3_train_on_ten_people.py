"""Train identity modules on ten people: photos in folders, shards, identity weights.

Usage::

    python examples/3_train_on_ten_people.py [--steps 20] [-o training]

The people are drawn, so only this package is needed. For photos of real people, give `prepare` your recognizer and
`train` an SDXL checkpoint; see docs/training.md. Twenty steps show the workflow, not a likeness.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from infid_export.cli.main import run
from infid_training.world import drawing, people, scenes

PEOPLE, PHOTOS = 10, 2


def draw_people(folder: Path) -> None:
    """Write one subfolder per person: identity-enhanced training needs at least two photos of each."""
    for who in range(PEOPLE):
        (folder / str(who)).mkdir(parents=True)
        for number in range(PHOTOS):
            photo = drawing.render(people.person(who), scenes.portrait(PHOTOS * who + number))
            photo.save(folder / str(who) / f"{number}.png")


def infid_export(*words: object) -> None:
    """Run the command as a shell would; every command can also be called as a function."""
    code = run([str(word) for word in words])
    if code:
        raise SystemExit(code)


def main() -> None:
    """Draw, prepare, train, and print how to build the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, default=Path("training"))
    arguments = parser.parse_args()
    folder, shards, result = (arguments.output / name for name in ("people", "shards", "run"))

    draw_people(folder)
    infid_export("prepare", folder, "--detector", "drawn", "--photo-size", 128, "-o", shards)
    infid_export("train", shards, "-o", result, "--train-steps", arguments.steps, "--learning-rate", 2e-3)
    print(f"infid-export build --identity {result / 'identity.safetensors'} --backend onnxruntime")


if __name__ == "__main__":
    main()
