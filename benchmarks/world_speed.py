"""How fast the world draws: images per second at one size, on all cores.

Usage::

    python benchmarks/world_speed.py [--pictures N] [--size PX] [--name world-speed] [--machine WORDS]

People and scenes are those that the demo model is trained on, including portraits. Starting the processes is not timed.
The document goes to benchmarks/results/<name>.json; nothing in it is edited by hand.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from functools import partial
from typing import Any

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from infid_export.cli.output import Output
from infid_training.recipe.pictures import PICTURES, SIZE, scene_of
from infid_training.world.drawing import render
from infid_training.world.people import person

_PACKAGES = ("numpy", "pillow")
_CHUNK = 32


def draw(size: int, index: int) -> int:
    """Draw an image with a side of `size` pixels, and return its size in bytes."""
    return len(render(person(index // PICTURES), scene_of(index), size).tobytes())


def measure(arguments: argparse.Namespace, _: Output) -> dict[str, Any]:
    """Draw images and return the document."""
    pictures, size = arguments.pictures, arguments.size
    processes = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(partial(draw, size), range(processes * _CHUNK), chunksize=_CHUNK)  # imports and caches
        started = time.perf_counter()
        drawn = sum(pool.imap_unordered(partial(draw, size), range(pictures), chunksize=_CHUNK))
        seconds = time.perf_counter() - started
    assert drawn == pictures * size * size * 3
    return {
        "kind": "world speed",
        **measured_on(arguments.machine, _PACKAGES),
        "pictures": pictures,
        "size": size,
        "processes": processes,
        "seconds": seconds,
        "pictures_per_second": pictures / seconds,
    }


def sentence(document: dict[str, Any]) -> str:
    """Return the result of a document."""
    return (
        f"{document['pictures_per_second']:.0f} images of {document['size']} × {document['size']} per second in "
        f"{document['processes']} processes"
    )


def main(words: list[str]) -> int:
    """Measure, write the document and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000, metavar="N", help="(10000)")
    parser.add_argument("--size", type=int, default=SIZE, metavar="PX", help=f"side of an image ({SIZE})")
    parser.add_argument("--name", default="world-speed", help="name of the document")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    return 1 if publish(measure, sentence, parser.parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
