"""The folder of an evaluation: scores, contact sheet, images and reference photos."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from infid_engines.errors import InputError
from infid_engines.manifest import write_json
from infid_export.evaluation.evaluation import Evaluation
from infid_export.evaluation.grid import Grid, save_png
from infid_export.evaluation.sets import EvaluationSet, Request

SCORES, GRID, PICTURES, REFERENCES = "scores.json", "grid.png", "pictures", "references"


class ResultFolder:
    """Writes images as they are generated, and the scores and the contact sheet at the end.

    Args:
        folder: created if it is missing; None writes nothing.
        chosen: the set.

    Raises:
        InputError: the folder cannot be written; the reference photos are written immediately.
    """

    def __init__(self, folder: Path | None, chosen: EvaluationSet) -> None:
        self._folder = folder
        if folder is None:
            return
        self._grid = Grid(chosen)
        self._chosen = chosen
        try:
            for name in (PICTURES, REFERENCES):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}).", fix="Choose another folder with -o."
            ) from error
        for number, subject in enumerate(chosen.people):
            save_png(subject.photo, folder / REFERENCES / f"{number}.png")

    def add(self, request: Request, image: Image.Image) -> None:
        """Write an image as `pictures/<person>-<prompt>-<seed>.png`; the numbers are indices into the set, from 0.

        Raises:
            InputError: it cannot be written.
        """
        if self._folder is None:
            return
        save_png(image, self._folder / PICTURES / _name(request, self._chosen))
        self._grid.add(request, image)

    def finish(self, found: Evaluation) -> list[Path]:
        """Write scores and contact sheet, and return their paths.

        Raises:
            InputError: they cannot be written.
        """
        if self._folder is None:
            return []
        paths = [self._folder / SCORES, self._folder / GRID]
        write_json(paths[0], found.to_json())
        save_png(self._grid.draw(), paths[1])
        return paths


def kept_pictures(folder: Path, chosen: EvaluationSet) -> list[Image.Image]:
    """Return the images of a finished `ResultFolder` in the set's order.

    Raises:
        InputError: an image is missing or broken.
    """
    found = []
    for subject in chosen.people:
        for request in chosen.requests(subject):
            path = folder / PICTURES / _name(request, chosen)
            try:
                with Image.open(path) as image:
                    found.append(image.convert("RGB"))
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read ({error}).", fix=f"Delete {folder} to generate its images again."
                ) from error
    return found


def _name(request: Request, chosen: EvaluationSet) -> str:
    return f"{chosen.people.index(request.person)}-{chosen.prompts.index(request.prompt)}-{request.seed}.png"
