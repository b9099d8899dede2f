"""A server in a thread of the test's process, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from infid_export.serve.app import create_app
from infid_export.serve.options import ServeOptions
from infid_export.serve.server import listen, server_of, url_of
from infid_export.serve.service import Service

TOKEN = "0123456789abcdef"


@dataclass
class Running:
    """A server that runs."""

    url: str
    app: FastAPI
    log: list[str] = field(default_factory=list)
    access: list[str] = field(default_factory=list)

    @property
    def service(self) -> Service:
        return self.app.state.service

    def get(self, path: str, **given: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=60, **given)

    def delete(self, path: str, **given: Any) -> httpx.Response:
        return httpx.delete(self.url + path, timeout=30, **given)

    def enroll(self, *photos: bytes, **fields: Any) -> str:
        """Return the id of a new person."""
        answer = self.post("/v1/people", files=[("image[]", photo) for photo in photos or (dot_png(),)], data=fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def metric(self, name: str) -> float:
        """Return a metric, such as `infid_images_total{outcome="done"}`; 0 if there is none yet."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[-1]) if lines else 0.0


@contextmanager
def running(options: ServeOptions, grace: float = 10.0, ready: bool = True) -> Iterator[Running]:
    """Run a server, and wait until it is ready."""
    log: list[str] = []
    access: list[str] = []
    listening = listen("127.0.0.1", 0, bool(options.tokens))
    app = create_app(options, access_log=access.append, log=log.append)
    server = server_of(app, grace, log.append)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    found = Running(url_of(listening), app, log, access)
    try:
        wait_until(lambda: server.started and (not ready or app.state.service.worker.problem is None))
        yield found
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def dot_png(x: int = 200, brightness: int = 60) -> bytes:
    """A photo with one face for the tiny engines' detector."""
    photo = np.full((320, 400, 3), brightness, np.uint8)
    photo[160:164, x : x + 4] = 255
    content = BytesIO()
    Image.fromarray(photo).save(content, format="PNG")
    return content.getvalue()


def options_of(folder: Path, **changes: Any) -> ServeOptions:
    """Options for the tiny engines."""
    return ServeOptions(folder, **{"template_budget": 100_000_000, **changes})
