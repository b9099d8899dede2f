"""Starts a replica on Ray, damages its engines, and waits until Ray has replaced it; then starts one that cannot run.

It is a script of its own since Ray reads its environment when it is imported, once per process.

Args:
    1: a folder with `engines`, and with `poisoned` ones.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
os.environ.update(RAY_worker_niceness="0")

import ray
from ray import serve

from infid_engines.errors import EngineFolderError
from infid_export.serve import ray as module
from infid_export.serve.cluster import deployment as cluster

PATIENCE = 300.0  # seconds


class Fragile(module.Replica):
    """A replica whose engines can be damaged."""

    async def name(self) -> str:
        return str(serve.get_replica_context().replica_tag)

    async def damage(self) -> None:
        self.app.state.service.worker._damaged(EngineFolderError("engines/fake is damaged.", fix="Build it again."))


def arguments(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "backend": "onnxruntime", "device": "cpu", "threads": 1, "token_file": None}


def damaged(place: Path) -> dict[str, Any]:
    """Damage a replica; return its name, and that of the one after it."""
    module.Replica = Fragile  # type: ignore[misc]
    handle = serve.run(module.app(arguments(place / "engines")), name="fragile")
    before = handle.name.remote().result()
    handle.damage.remote().result()
    after, deadline = before, time.monotonic() + PATIENCE
    while after == before and time.monotonic() < deadline:
        time.sleep(0.2)
        after = handle.name.remote().result(timeout_s=PATIENCE)
    serve.delete("fragile")
    return {"before": before, "after": after}


def not_started(place: Path) -> str:
    """Return what is reported of engines that cannot run."""
    try:
        serve.run(module.app(arguments(place / "poisoned")), name="poisoned")
    except RuntimeError as error:
        return cluster._last_line(serve, "poisoned", error)
    return ""


if __name__ == "__main__":
    ray.init(
        address="local", include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    serve.start(proxy_location="Disabled")
    place = Path(sys.argv[1])
    print(json.dumps({**damaged(place), "not started": not_started(place)}))  # noqa: T201
    ray.shutdown()
