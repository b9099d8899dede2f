"""What customers gain who ask for images of one template at the same time.

Three kinds of turns alternate. In each, customers with a person each ask for one image, all at the same time:

- `plain`: each has a seed of its own, so that nothing is shared;
- `template`: all name one template, made before;
- `same prompt`: all have the same prompt and seed, which no template was made of before.

A ratio is the median of those of single rounds, whose turns follow each other: a machine that others use as well slows
all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.provenance import measured_on
from benchmarks.serving.client import PACKAGES, PROMPT, client, enroll, generate, photos, require
from benchmarks.serving.server_process import ServerProcess
from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_export.cli.output import Output

KINDS = ("plain", "template", "same prompt")
GOAL = 1.6  # images per second with a template, as a multiple of those without


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="more folders, such as of a batch of 4")
    parser.add_argument("--customers", type=int, default=8, metavar="N", help="(8)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each kind (5)")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps of an image (30)")


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Measure, and return the document."""
    found = []
    for folder in (arguments.folder, *arguments.folders):
        with tempfile.TemporaryDirectory() as scratch, ServerProcess(folder, Path(scratch)) as server:
            seconds = asyncio.run(_turns(server.url, arguments, output))
        rates = {kind: arguments.customers / np.asarray(seconds[kind]) for kind in KINDS}
        middle = {kind: float(np.median(rates[kind])) for kind in KINDS}
        ratios = {kind: round(float(np.median(rates[kind] / rates["plain"])), 3) for kind in KINDS[1:]}
        found.append({
            "batch": Manifest.load(folder).batch, "images_per_second": {kind: round(middle[kind], 3) for kind in KINDS},
            "p20_images_per_second": {kind: round(float(np.quantile(rates[kind], 0.2)), 3) for kind in KINDS},
            "p80_images_per_second": {kind: round(float(np.quantile(rates[kind], 0.8)), 3) for kind in KINDS},
            "ratio": ratios, "goal": GOAL, "met": ratios["template"] >= GOAL,
        })  # fmt: skip
    return {
        "kind": "serving batching", **measured_on(arguments.machine, PACKAGES), "customers": arguments.customers,
        "rounds": arguments.rounds, "steps": arguments.steps, "folders": found,
    }  # fmt: skip


async def _turns(url: str, arguments: argparse.Namespace, output: Output) -> dict[str, list[float]]:
    """Return the seconds of each turn, by kind."""
    count = arguments.customers
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with client(url) as server:
        ids = await enroll(server, photos(arguments.photo, count))
        template = await _template(server, arguments.steps)
        for number in range(arguments.rounds + 1):
            first = 1000 * (number + 1)  # every turn has seeds of its own
            own: dict[str, Any] = {"prompt": PROMPT, "steps": arguments.steps}
            bodies = {
                "plain": [{**own, "seed": first + index} for index in range(count)],
                "template": [{"template": template, "seed": first + index} for index in range(count)],
                "same prompt": [{**own, "seed": first + count}] * count,
            }
            for kind in KINDS if number % 2 else KINDS[::-1]:
                started = time.perf_counter()
                answers = [generate(server, {**body, "person": id}) for body, id in zip(bodies[kind], ids, strict=True)]
                for answer in await asyncio.gather(*answers):
                    require(answer)
                took = time.perf_counter() - started
                output.note(f"{kind}: {count} images in {took:.2f} s")
                if number:  # the first turn is slower
                    seconds[kind].append(took)
    return seconds


async def _template(server: httpx.AsyncClient, steps: int) -> str:
    response = await server.post("/v1/templates", json={"prompt": PROMPT, "seed": 0, "steps": steps})
    if response.status_code != 201:
        raise InputError(
            f"There is no template: {response.text}", fix="Build the folder with the graphs for templates."
        )
    return str(response.json()["id"])
