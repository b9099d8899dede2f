"""Faults that a long mixed load has found in how requests end."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from running import Running, wait_until

from infid_export.serve.http import events
from infid_export.serve.http.problems import Problem


class Gone:
    """A request whose client has gone."""

    async def receive(self) -> dict[str, str]:
        return {"type": "http.disconnect"}


def test_work_that_swallows_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.wait_for` does so before Python 3.12, if what it waits for ends at the same time."""
    monkeypatch.setattr(events, "_CANCEL_SECONDS", 0.01)
    cancelled = []

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
        await asyncio.sleep(60)

    async def wait() -> None:
        work: Any = stubborn()
        await asyncio.wait_for(events.until_hung_up(Gone(), work, lambda: None), 20)  # type: ignore[arg-type]

    with pytest.raises(Problem, match="closed the connection"):
        asyncio.run(wait())
    assert len(cancelled) == 3


def test_no_request_outlives_a_client_that_leaves_a_stream(fresh: Running) -> None:
    body = {"prompt": "a", "person": fresh.enroll(), "stream": True, "partial_images": 3, "progress": True}
    for number in range(100):
        with httpx.stream("POST", f"{fresh.url}/v1/images/generations", json=body) as answer:
            lines = answer.iter_lines()
            for _ in range(number % 12):
                next(lines, None)
    wait_until(lambda: sum("generations" in line for line in fresh.access) == 100)
    assert not fresh.service.jobs
