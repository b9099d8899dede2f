"""Thousands of hostile requests: whether the server survives them, keeps its files, and still draws the same image.

Half of them go to a server with tokens, half to one without. Each server keeps its people in a folder among files that
it must not touch. Beside the requests, some clients send or read one byte a second.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import secrets
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.provenance import measured_on
from benchmarks.serving.client import PACKAGES, client, enroll, generate, photos, pixels_of, psnr, require
from benchmarks.serving.hostile_cases import KINDS, Case, Target, image_request, request
from benchmarks.serving.ledger import is_server_error
from benchmarks.serving.server_process import ServerProcess
from infid_export.cli.output import Output

_STEPS = 2
_LIMITS = ("--max-steps", "2", "--max-images", "2", "--max-bytes", "2000000")
_AT_ONCE = 8
_SECONDS = 120.0  # for one case
_GROWTH_MB = 300.0  # of memory, at most, from the first tenth of the requests to the end
_LEAST_PSNR = 50.0  # dB; a template of the same seed may be at hand by then, whose image is the same up to rounding
_SLOW_SECONDS = 1.0  # between two bytes of a slow client
_SHOWN = 10  # faults with their requests


@dataclass
class _Counts:
    """What came of one server's requests."""

    requests: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    faults: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="(10000)")
    parser.add_argument("--slow-clients", type=int, default=6, metavar="N", help="at once, of each server (6)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the requests (0)")


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Measure, and return the document."""
    servers = {}
    for number, name in enumerate(("with tokens", "without tokens")):
        count = arguments.requests // 2 + (arguments.requests % 2) * number
        servers[name] = _serve(arguments, Random(arguments.seed + number), count, number == 0, output)
    return {
        "kind": "serving hostile", **measured_on(arguments.machine, PACKAGES), "requests": arguments.requests,
        "seed": arguments.seed, "slow_clients": arguments.slow_clients, "servers": servers,
        "faults": sum(len(each["faults"]) for each in servers.values()),
    }  # fmt: skip


def _serve(
    arguments: argparse.Namespace, random: Random, count: int, with_token: bool, output: Output
) -> dict[str, Any]:
    """Send the requests to one server."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        token = secrets.token_hex(16) if with_token else ""
        options = ["--people", str(tree / "home" / "people"), *_LIMITS]
        if token:
            (tree / "token").write_text(token)
            options += ["--token-file", str(tree / "token")]
        for folder in ("home/scratch", "home/people", "home/people-of-others"):
            (tree / folder).mkdir(parents=True)
        with ServerProcess(arguments.folder, tree / "home" / "scratch", *options) as server:
            found = asyncio.run(_attacked(server, tree, token, random, count, arguments, output))
            if server.bugs:
                output.note(server.log[-4000:])
            exit_code = server.stop()
        faults = [*found.pop("faults"), *([f"the exit code was {exit_code}"] if exit_code else [])]
        return {**found, "faults": faults}


async def _attacked(
    server: ServerProcess, tree: Path, token: str, random: Random, count: int, arguments: argparse.Namespace,
    output: Output,
) -> dict[str, Any]:  # fmt: skip
    counts, people = _Counts(), tree / "home" / "people"
    async with client(server.url, token or None) as own:
        (content,) = photos(arguments.photo, 1)
        (person,) = await enroll(own, [content])
        target = Target(f"127.0.0.1:{server.port}", token, person, content, _STEPS)
        wanted = require(await generate(own, image_request(target))).response
    _write_canaries(tree, (people / f"{person}.safetensors").read_bytes())
    before, own_file = snapshot(tree, people), (people / f"{person}.safetensors").read_bytes()
    slow = [asyncio.ensure_future(_slow(target, number)) for number in range(arguments.slow_clients)]
    memory = list[float]()
    cases = ((kind, KINDS[kind](target, random)) for kind in random.choices(list(KINDS), k=count))
    await asyncio.gather(*(_send_all(cases, target, server, counts, memory, count, output) for _ in range(_AT_ONCE)))
    slow_closed = sum(each.done() for each in slow)
    for each in slow:
        each.cancel()
    await asyncio.wait(slow) if slow else None
    after = snapshot(tree, people)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    counts.faults += [f"{path} was touched" for path in changed]
    kept = people / f"{person}.safetensors"
    if not server.alive:
        counts.faults.append("the server has died")
    elif not kept.exists() or kept.read_bytes() != own_file:
        counts.faults.append("the server has changed or erased a person")
    else:
        async with client(server.url, token or None) as own:
            again = await generate(own, image_request(target))
            if again.response.status_code != 200:
                counts.faults.append(f"there is no image at the end: {again.response.text[:200]}")
            elif psnr(pixels_of(again.response), pixels_of(wanted)) < _LEAST_PSNR:
                counts.faults.append("the image at the end is another one")
    output.note(f"{count} requests are sent; {slow_closed} of {len(slow)} slow clients were closed before")
    grown = memory[-1] - memory[0] if memory else 0.0
    if grown > _GROWTH_MB:
        counts.faults.append(f"its memory has grown by {grown:.0f} MB")
    if server.bugs:
        counts.faults.append(f"it has logged {server.bugs} bugs")
    return {
        "requests": {kind: counts.requests[kind] for kind in KINDS},
        "statuses": {kind: dict(sorted(each.items())) for kind, each in counts.statuses.items()},
        "files_compared": len(before), "slow_clients_closed": slow_closed,
        "resident_mb": {"start": memory[0], "most": max(memory), "end": memory[-1]} if memory else {},
        "faults": counts.faults,
    }  # fmt: skip


async def _send_all(
    cases: Any, target: Target, server: ServerProcess, counts: _Counts, memory: list[float], count: int, output: Output
) -> None:
    """Send one case after the other, as long as there are some."""
    for kind, case in cases:
        counts.requests[kind] += 1
        done = sum(counts.requests.values())
        try:
            statuses = await asyncio.wait_for(_answers(target, case), _SECONDS)
        except asyncio.TimeoutError:
            statuses = []
            _fault(counts, f"no end within {_SECONDS:.0f} s", kind, case)
        counts.statuses[kind].update(str(status) for status in statuses)
        if not statuses:
            counts.statuses[kind]["closed"] += 1
        if any(map(is_server_error, statuses)):
            _fault(counts, f"status {statuses}", kind, case)
        if case.answered and len(statuses) != case.answers:
            _fault(counts, f"{len(statuses)} answers instead of {case.answers}", kind, case)
        if not server.alive:
            _fault(counts, "the server has died", kind, case)
            return
        if done >= count // 10 and done % 20 == 0:
            memory.append(round(server.resident_mb, 1))
        if done % 500 == 0:
            output.note(f"{done} requests, {server.resident_mb:.0f} MB, {len(counts.faults)} faults")


def _fault(counts: _Counts, what: str, kind: str, case: Case) -> None:
    shown = case.content[:600] if len(counts.faults) < _SHOWN else b""
    counts.faults.append(f"{kind}: {what}: {shown!r}")


async def _answers(target: Target, case: Case) -> list[int]:
    """Send a case, and return the statuses of the answers; fewer if the connection ends before."""
    host, _, port = target.host.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    found: list[int] = []
    try:
        with suppress(OSError):  # it may be rejected, and the connection closed, before it is sent as a whole
            writer.write(case.content)
            await writer.drain()
            if case.half_close:
                writer.write_eof()
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while not case.leaves and len(found) < case.answers:
                found.append(await _answer_or_end(reader, writer, case.patience))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return found


async def _answer_or_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float) -> int:
    """Read one answer; if there is none for a while, end the client's direction."""
    reading = asyncio.ensure_future(_answer(reader))
    try:
        if patience and not (await asyncio.wait({reading}, timeout=patience))[0]:
            with suppress(OSError):
                writer.write_eof()
        return await reading
    finally:
        reading.cancel()


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end, and return its status."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        if status != 100:
            break
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if "content-length" in fields:
        if not head.startswith("http/1.1 204"):
            with suppress(asyncio.IncompleteReadError):  # the answer to HEAD has no body
                await reader.readexactly(int(fields["content-length"]))
    elif fields.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    return status


async def _slow(target: Target, number: int) -> None:
    """Send or read one byte a second, until the server closes the connection."""
    host, _, port = target.host.partition(":")
    content = request(target, "POST", "/v1/templates", b"{" + b" " * 1000)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with suppress(OSError):
            if number % 3 == 0:  # a slow header
                await _drip(writer, content)
            elif number % 3 == 1:  # a slow body
                head, _, body = content.partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n")
                await _drip(writer, body)
            else:  # a slow reader
                writer.write(request(target, "GET", "/openapi.json"))
                while await reader.read(1):
                    await asyncio.sleep(_SLOW_SECONDS)
    finally:
        writer.close()


async def _drip(writer: asyncio.StreamWriter, content: bytes) -> None:
    for place in range(len(content)):
        writer.write(content[place : place + 1])
        await writer.drain()
        await asyncio.sleep(_SLOW_SECONDS)


def _write_canaries(tree: Path, person: bytes) -> None:
    """Write files that a path could lead to, some of them people."""
    for path in ("canary.safetensors", "home/canary.safetensors", "home/people-of-others/canary.safetensors"):
        (tree / path).write_bytes(person)
    for path in ("canary.txt", "canary", "home/canary", "home/canary.json", "home/canary.png", "home/scratch/canary"):
        (tree / path).write_text("not yours")


def snapshot(tree: Path, people: Path) -> dict[str, str]:
    """Return a hash of every file of a tree, and every folder, without the people and what the server prints."""
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(tree.rglob("*"))
        if people not in path.parents and path.name not in ("stdout", "stderr")
    }
