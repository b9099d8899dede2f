"""A long mixed load: whether every request is answered, and whether the server's memory stays.

Customers generate, stream, edit, make templates, enroll, send invalid requests, cancel, hang up and read slowly.
Nothing makes the server fail on purpose: it has no hook for that, so every status from 500 up is a fault, except 503
and 507.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.provenance import measured_on
from benchmarks.serving.client import PACKAGES, client, enroll, metrics, photos
from benchmarks.serving.customers import Customer
from benchmarks.serving.ledger import Ledger
from benchmarks.serving.measures import slope_per_hour
from benchmarks.serving.server_process import ServerProcess
from infid_export.cli.output import Output

_PEOPLE = 4
_QUEUE = ("infid_queue_length",)
_SETTLE_SECONDS = 60.0
_STOP_SECONDS = 15.0  # less than the grace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="(60)")
    parser.add_argument("--customers", type=int, default=8, metavar="N", help="at once (8)")
    parser.add_argument(
        "--sample-seconds", type=float, default=10.0, metavar="S", help="between samples of memory (10)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what the customers do (0)")


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Measure, and return the document."""
    with tempfile.TemporaryDirectory() as scratch, ServerProcess(arguments.folder, Path(scratch)) as server:
        found = asyncio.run(_soak(server, arguments, output))
        stopping = time.monotonic()
        found["exit_code"] = server.stop()
        found["stop_seconds"] = round(time.monotonic() - stopping, 1)
        found["bugs_logged"] = server.bugs
        if server.bugs:
            output.note(server.log[-4000:])
    counts = ("server_errors", "bugs_logged", "exit_code")
    faults = found["stop_seconds"] > _STOP_SECONDS  # something still runs, though nobody waits for it
    faults += len(found["lost"]) + sum(found[name] for name in counts) + len(found["metrics_differ"])
    return {
        "kind": "serving soak", **measured_on(arguments.machine, PACKAGES), "minutes": arguments.minutes,
        "customers": arguments.customers, "seed": arguments.seed, **found, "faults": faults,
    }  # fmt: skip


async def _soak(server: ServerProcess, arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    ledger, random = Ledger(), Random(arguments.seed)
    contents = photos(arguments.photo, _PEOPLE)
    async with client(server.url) as one:
        ids = await enroll(one, contents)
        before = await metrics(one)
    at_start = _facts(server)
    samples = list[tuple[float, float]]()
    started = time.monotonic()
    deadline = started + arguments.minutes * 60
    watching = asyncio.ensure_future(_watch(server, ledger, samples, arguments.sample_seconds, output))
    async with client(server.url) as shared:

        async def custom(number: int) -> None:
            own = Random(random.random())
            customer = Customer(shared, ledger, own, contents[number % _PEOPLE], ids[number % _PEOPLE], f"c{number:06}")
            while time.monotonic() < deadline and server.alive:
                await customer.act()

        await asyncio.gather(*(custom(number) for number in range(arguments.customers)))
    took = time.monotonic() - started
    watching.cancel()
    async with client(server.url) as one:
        differences = await _settled(one, ledger, before)
    at_end = _facts(server)
    hung_up = sum(ledger.left.values()) + sum(ledger.dropped.values())
    samples.append((round(took, 1), at_end["resident_mb"]))
    return {
        "seconds": round(took, 1), "actions": dict(sorted(ledger.kinds.items())), "statuses": ledger.statuses(),
        "requests": sum(ledger.answers.values()) + hung_up, "hung_up": hung_up,
        "images": ledger.images, "lost": ledger.lost, "server_errors": ledger.server_errors(),
        "metrics_differ": differences, "at_start": at_start, "at_end": at_end,
        "resident_mb_per_hour": round(slope_per_hour(samples), 2), "samples": samples,
    }  # fmt: skip


def _facts(server: ServerProcess) -> dict[str, Any]:
    return {
        "resident_mb": round(server.resident_mb, 1), "descriptors": server.descriptors, "threads": server.threads,
    }  # fmt: skip


async def _watch(
    server: ServerProcess, ledger: Ledger, samples: list[tuple[float, float]], every: float, output: Output
) -> None:
    """Sample the server's memory."""
    started = time.monotonic()
    while server.alive:
        samples.append((round(time.monotonic() - started, 1), round(server.resident_mb, 1)))
        output.note(
            f"{samples[-1][0]:.0f} s: {samples[-1][1]:.0f} MB, {sum(ledger.answers.values())} answers, "
            f"{len(ledger.lost)} lost, {ledger.server_errors()} server errors"
        )
        await asyncio.sleep(every)


async def _settled(server: httpx.AsyncClient, ledger: Ledger, before: Any) -> list[str]:
    """Return where the server's metrics differ, once the requests of those who hung up are over."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        after = await metrics(server)
        differences = ledger.differences(before, after)
        if (after[_QUEUE] == 0 and not differences) or time.monotonic() > deadline:
            return differences
        await asyncio.sleep(0.2)
