"""Latency and images per second of a server, at several numbers of requests at once."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.provenance import measured_on
from benchmarks.serving.client import PACKAGES, PROMPT, Answer, client, enroll, generate, photos
from benchmarks.serving.measures import quantiles_ms
from benchmarks.serving.server_process import ServerProcess
from infid_export.cli.output import Output

_PEOPLE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument("--images", type=int, default=96, metavar="N", help="images of each level (96)")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps of an image (5)")


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Measure, and return the document."""
    with tempfile.TemporaryDirectory() as scratch, ServerProcess(arguments.folder, Path(scratch)) as server:
        levels = asyncio.run(_levels(server.url, arguments, output))
    return {
        "kind": "serving load", **measured_on(arguments.machine, PACKAGES), "steps": arguments.steps,
        "images": arguments.images, "levels": levels,
    }  # fmt: skip


async def _levels(url: str, arguments: argparse.Namespace, output: Output) -> list[dict[str, Any]]:
    async with client(url) as server:
        ids = await enroll(server, photos(arguments.photo, _PEOPLE))
        await _level(server, ids, 1, 2, arguments.steps)  # the first images are slower
        found = []
        for concurrency in arguments.concurrency:
            found.append(await _level(server, ids, concurrency, arguments.images, arguments.steps))
            output.note(f"{concurrency} at once: {found[-1]}")
        return found


async def _level(
    server: httpx.AsyncClient, ids: list[str], concurrency: int, images: int, steps: int
) -> dict[str, Any]:
    """Let some customers ask for one image after the other, until there are enough."""
    numbers, answers = iter(range(images)), list[Answer]()

    async def customer() -> None:
        for number in numbers:
            body = {"prompt": PROMPT, "person": ids[number % len(ids)], "seed": number, "steps": steps}
            answers.append(await generate(server, body))

    started = time.perf_counter()
    await asyncio.gather(*(customer() for _ in range(concurrency)))
    took = time.perf_counter() - started
    statuses = Counter(str(each.response.status_code) for each in answers)
    seconds = [each.seconds for each in answers if each.response.status_code == 200]
    return {
        "concurrency": concurrency, **(quantiles_ms(seconds) if seconds else {}),
        "images_per_second": round(len(seconds) / took, 3), "statuses": dict(sorted(statuses.items())),
        "rejected_with_429": sum(each.rejected for each in answers),
    }  # fmt: skip
