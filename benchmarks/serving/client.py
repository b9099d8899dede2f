"""What the measurements share as clients: people, requests that are tried again, and the server's metrics."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from infid_engines.errors import InputError
from infid_training.world import people, scenes
from infid_training.world.drawing import render

Array = np.ndarray[Any, Any]
PROMPT = "an oil painting of a person"
PACKAGES = ("numpy", "onnxruntime", "fastapi", "uvicorn", "httpx")
_TIMEOUT = httpx.Timeout(600, connect=30)
_PHOTO_SIDE = 128


class Answer(NamedTuple):
    """The last answer to a request that was sent again as long as the queue was full.

    Args:
        response: the answer.
        seconds: from the first attempt to the end of the answer.
        rejected: attempts that got 429.
    """

    response: httpx.Response
    seconds: float
    rejected: int


def client(url: str, token: str | None = None) -> httpx.AsyncClient:
    """Return a client of a server on this machine; no proxy is used."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=128)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits, trust_env=False)


def photos(files: Sequence[Path], count: int) -> list[bytes]:
    """Return encoded photos of people: the files over and over, or without files drawn people, all different.

    Raises:
        InputError: a file cannot be read.
    """
    if files:
        try:
            contents = [path.read_bytes() for path in files]
        except OSError as error:
            raise InputError(f"A photo cannot be read ({error}).", fix="Check the path.") from error
        return [contents[index % len(contents)] for index in range(count)]
    return [_drawn(people.FIRST_HELD_OUT + index) for index in range(count)]


def _drawn(number: int) -> bytes:
    content = io.BytesIO()
    render(people.person(number), scenes.portrait(number), _PHOTO_SIDE).save(content, format="PNG")
    return content.getvalue()


async def enroll(server: httpx.AsyncClient, contents: Sequence[bytes]) -> list[str]:
    """Enroll a person per photo, and return their ids.

    Raises:
        InputError: the server finds no face.
    """
    found = []
    for content in contents:
        response = await server.post("/v1/people", files={"image": ("photo.png", content, "image/png")})
        if response.status_code != 201:
            raise InputError(f"A person cannot be enrolled: {response.text}", fix="Give other photos with --photo.")
        found.append(response.json()["id"])
    return found


async def generate(server: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Ask for images, again after the time that the server states if its queue is full."""
    started, rejected = time.perf_counter(), 0
    while True:
        response = await server.post("/v1/images/generations", json=body)
        if response.status_code != 429:
            return Answer(response, time.perf_counter() - started, rejected)
        rejected += 1
        await asyncio.sleep(float(response.headers["retry-after"]))


def require(answer: Answer) -> Answer:
    """Return an answer that has images.

    Raises:
        InputError: it has none.
    """
    if answer.response.status_code != 200:
        raise InputError(f"There is no image: {answer.response.text}", fix="Ask for what the folder can do.")
    return answer


async def metrics(server: httpx.AsyncClient) -> Counter[tuple[str, ...]]:
    """Return the server's own metrics: values by name and labels, in the order of the labels' names."""
    text = (await server.get("/metrics")).text
    return Counter({
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    })  # fmt: skip


def pixels_of(response: httpx.Response) -> Array:
    """Return the first image of an answer, `[h, w, 3]` uint8."""
    content = base64.b64decode(response.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content)))


def psnr(first: Array, second: Array) -> float:
    """Return the peak signal-to-noise ratio of two images of 8 bits in dB; infinity if they are equal."""
    error = float(np.square(first.astype(np.float64) - second).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Add the block's duration to a list."""
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)
