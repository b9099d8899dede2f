"""The job board: what servers that answer the same clients know of each other.

Each server exchanges with the board a few times a second: it brings the jobs that it works on, and takes orders, which
are to cancel a job, to forget an erased person, or to report its metrics. The board keeps no photo, prompt or name, and
nothing that is lost with it: a new one knows everything again after one exchange with each server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from infid_export.serve.cluster.neighbors import JobState
from infid_export.serve.http.problems import Problem
from infid_export.serve.metrics import merged

EVERY = 0.3  # seconds between two exchanges of a server
_GONE = 3.0  # seconds without an exchange, after which nobody waits for a server
_PATIENCE = 2.0  # seconds that one question waits for the servers
_KEPT = 10.0  # seconds in which a server that had no time for the board still learns who was erased
_SETTLES = 1.0  # seconds after which a new board has been visited by every server
_CALL_SECONDS = 5.0


class Orders(NamedTuple):
    """What a server has to do.

    Args:
        cancelled: its jobs that were cancelled.
        erased: people who were erased in the last seconds.
        metrics: whether to report its metrics.
    """

    cancelled: list[str]
    erased: list[str]
    metrics: bool


@dataclass
class _Server:
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    seen: float = 0.0  # when it was last here
    visits: int = 0
    cancelled: set[str] = field(default_factory=set)
    reported: float = 0.0
    metrics: bytes = b""


class Board:
    """Knows the jobs of all servers. For one event loop."""

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}
        self._erased: list[tuple[float, str]] = []
        self._asked = 0.0  # when somebody wanted the metrics
        self._settled = time.monotonic() + _SETTLES
        self._changed = asyncio.Condition()

    async def exchange(self, server: str, jobs: Mapping[str, JobState], erased: list[str]) -> Orders:
        """Take a server's jobs and the people who were erased there, and return its orders."""
        now = time.monotonic()
        for name in [name for name, each in self._servers.items() if now - each.seen > _GONE]:
            del self._servers[name]
        found = self._servers.setdefault(server, _Server())
        found.jobs, found.seen, found.visits = jobs, now, found.visits + 1
        self._erased = [(when, id) for when, id in self._erased if now - when < _KEPT]
        self._erased += [(now, id) for id in erased]
        orders = Orders(sorted(found.cancelled), [id for _, id in self._erased], self._asked > found.reported)
        found.cancelled.clear()
        async with self._changed:
            self._changed.notify_all()
        return orders

    async def leave(self, server: str) -> None:
        """Forget a server that stops."""
        self._servers.pop(server, None)

    async def find(self, id: str) -> JobState | None:
        """Return where a job is; None once all servers have said that they do not have it."""
        return await self._job(id)

    async def cancel(self, id: str) -> bool:
        """Cancel a job; return whether a server has it, and has been told."""
        if await self._job(id) is None:
            return False
        owners = [each for each in self._servers.values() if id in each.jobs]
        for owner in owners:
            owner.cancelled.add(id)
        return await self._until(lambda: all(id not in owner.cancelled for owner in owners))

    async def erase(self, person: str) -> bool:
        """Let all servers forget a person; return whether all have been told."""
        self._erased.append((time.monotonic(), person))
        return await self._until(self._all_here(1))

    async def metrics(self) -> dict[str, bytes]:
        """Return the metrics of every server that reports them in time."""
        start = self._asked = time.monotonic()
        await self._until(lambda: all(each.reported >= start for each in self._present()))
        return {name: each.metrics for name, each in self._servers.items() if each.reported >= start}

    async def report(self, server: str, metrics: bytes) -> None:
        """Take a server's metrics."""
        if server in self._servers:
            self._servers[server].metrics, self._servers[server].reported = metrics, time.monotonic()
        async with self._changed:
            self._changed.notify_all()

    async def _job(self, id: str) -> JobState | None:
        all_here = self._all_here(2)  # what a server brings on its first visit may be older than the question
        await self._until(lambda: self._known(id) is not None or all_here())
        return self._known(id)

    def _known(self, id: str) -> JobState | None:
        return next((each.jobs[id] for each in self._present() if id in each.jobs), None)

    def _present(self) -> list[_Server]:
        now = time.monotonic()
        return [each for each in self._servers.values() if now - each.seen < _GONE]

    def _all_here(self, times: int) -> Callable[[], bool]:
        """Return a function that tells whether every server has been here as often since now."""
        before = {id(each): each.visits for each in self._servers.values()}
        return lambda: (
            time.monotonic() > self._settled
            and all(each.visits >= before.get(id(each), 0) + times for each in self._present())
        )

    async def _until(self, true: Callable[[], bool]) -> bool:
        """Wait until something is true, at most for a while."""

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(true)

        try:
            await asyncio.wait_for(wait(), _PATIENCE)
        except asyncio.TimeoutError:
            return False
        return True


class Worked(Protocol):
    """The server whose jobs are on the board; `Service` is one."""

    jobs: dict[str, Any]

    def state_of(self, id: str) -> JobState | None:
        """Return where a request is."""

    def cancel(self, id: str) -> bool:
        """Cancel a request."""

    def forget(self, person: str) -> None:
        """Forget an erased person."""

    def metrics_text(self) -> bytes:
        """Return the metrics."""


class BoardNeighbors:
    """The other servers, as one server sees them through the board. `run` has to run beside its requests.

    Args:
        service: the server.
        name: the server's.
        call: calls a method of the board, by its name.
        log: receives a line when the board cannot be reached.
    """

    def __init__(
        self, service: Worked, name: str, call: Callable[..., Awaitable[Any]], log: Callable[[str], None]
    ) -> None:
        self._service, self._name, self._call, self._log = service, name, call, log
        self._erased: list[str] = []  # not known to the board yet
        self._away = False

    async def run(self) -> None:
        """Exchange with the board until cancelled."""
        try:
            while True:
                await self._exchange()
                await asyncio.sleep(EVERY)
        finally:
            await self._try("leave", self._name)

    async def find(self, id: str) -> JobState | None:
        """Return where a request is that another server works on."""
        found: JobState | None = await self._asked("find", id)
        return found

    async def cancel(self, id: str) -> bool:
        """Cancel a request that another server works on."""
        return bool(await self._asked("cancel", id))

    async def erased(self, id: str) -> None:
        """Say that a person was erased; the board learns it later if it cannot be reached now."""
        if await self._try("erase", id) is None:
            self._erased.append(id)

    async def metrics(self, own: bytes) -> bytes:
        """Return the metrics of all servers, with the label `replica`."""
        return merged({**(await self._try("metrics") or {}), self._name: own})

    async def _exchange(self) -> None:
        jobs = {id: state for id in list(self._service.jobs) if (state := self._service.state_of(id)) is not None}
        erased = list(self._erased)
        orders: Orders | None = await self._try("exchange", self._name, jobs, erased)
        if orders is None:
            return
        del self._erased[: len(erased)]
        for id in orders.cancelled:
            self._service.cancel(id)
        for person in orders.erased:
            self._service.forget(person)
        if orders.metrics:
            await self._try("report", self._name, await asyncio.to_thread(self._service.metrics_text))

    async def _asked(self, method: str, *values: Any) -> Any:
        """Return what the board answers.

        Raises:
            Problem: it cannot be reached.
        """
        try:
            return await asyncio.wait_for(self._call(method, *values), _CALL_SECONDS)
        except Exception as error:
            raise Problem(503, "The other servers cannot be reached.", "Try again.", code="no_board",
                          headers={"Retry-After": "1"}) from error  # fmt: skip

    async def _try(self, method: str, *values: Any) -> Any:
        """Return what the board answers; None if it cannot be reached, which is logged once."""
        try:
            found = await asyncio.wait_for(self._call(method, *values), _CALL_SECONDS)
        except Exception as error:  # whatever the transport raises: the images go on without the board
            if not self._away:
                self._log(f"the job board cannot be reached ({type(error).__name__}: {error})")
            self._away = True
            return None
        self._away = False
        return found
