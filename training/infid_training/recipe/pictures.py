"""The images that the demo model is trained on: people of the world, drawn once and kept on disk."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.atomic_files import full_disk_explained, whole_file
from infid_engines.errors import InputError
from infid_engines.progress import Stage
from infid_training.recipe.files import readable
from infid_training.world.drawing import landmarks, render
from infid_training.world.people import person
from infid_training.world.scenes import Scene, portrait, scene

Array = np.ndarray[Any, Any]

SIZE = 128
PEOPLE = 6000
PICTURES = 12  # of each person
_PORTRAITS = 3  # among them


@dataclass(frozen=True)
class Pictures:
    """The images with their landmarks and captions.

    Args:
        pixels: `[N, 128, 128, 3]` uint8; the images of a person are consecutive.
        marks: `[N, 5, 2]` fp32, see `landmarks`, as fractions of the side.
    """

    pixels: Array
    marks: Array

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    @cached_property
    def by_style(self) -> tuple[Array, Array]:
        """Return the numbers of the photos, and those of the images in another style."""
        photo = np.array([scene_of(index).style == "photo" for index in range(len(self))], bool)
        return np.flatnonzero(photo), np.flatnonzero(~photo)

    def caption(self, index: int, described: bool) -> str:
        """Return an image's caption; if `described`, it also describes the person."""
        who = person(index // PICTURES).describe() if described else "a person"
        return scene_of(index).caption(who)


def scene_of(index: int) -> Scene:
    """Return the scene of an image."""
    return portrait(index) if index % PICTURES < _PORTRAITS else scene(index)


def draw_pictures(folder: Path, stage: Stage, people: int) -> Pictures:
    """Draw the images, or open those drawn before.

    Args:
        folder: folder of `pixels.npy` and `landmarks.npy`.
        stage: shown the progress.
        people: number of people.

    Raises:
        InputError: the disk is full (the images take 590 kB per person), or the files drawn before are broken.
    """
    pixels, marks = folder / "pixels.npy", folder / "landmarks.npy"
    count = people * PICTURES
    if not marks.is_file():
        canvas = _canvas(pixels, count)
        found = np.zeros((count, 5, 2), np.float32)
        with multiprocessing.get_context("spawn").Pool() as pool:
            for index, (picture, points) in enumerate(pool.imap(_draw, range(count), chunksize=64)):
                canvas[index], found[index] = picture, points
                if index % 500 == 0:
                    stage.update(index / count, f"image {index} of {count}")
        canvas.flush()
        with whole_file(marks) as partial, partial.open("wb") as file:
            np.save(file, found)
    loaded = []
    for path in (pixels, marks):
        with readable(path):
            loaded.append(np.load(path))
    return Pictures(*loaded)


def _canvas(path: Path, count: int) -> np.memmap[Any, Any]:
    """Return a memory-mapped file with its disk space reserved; writing past a full disk would kill the process."""
    try:
        with full_disk_explained(path):
            canvas: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", np.uint8, (count, SIZE, SIZE, 3))
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except InputError:
        path.unlink(missing_ok=True)
        raise
    return canvas


def _draw(index: int) -> tuple[Array, Array]:
    who, where = person(index // PICTURES), scene_of(index)
    return np.asarray(render(who, where, SIZE)), landmarks(who, where).astype(np.float32)
