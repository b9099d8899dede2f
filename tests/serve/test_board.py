from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infid_export.serve.cluster import board as boards
from infid_export.serve.cluster.board import Board, BoardNeighbors
from infid_export.serve.cluster.neighbors import JobState, NoNeighbors
from infid_export.serve.http.problems import Problem
from infid_export.serve.metrics import merged

DRAWING = JobState("drawing", 0, 3, 30)


class FakeServer:
    """What a board asks of a server."""

    def __init__(self, name: str, board: Board) -> None:
        self.name, self.board = name, board
        self.jobs: dict[str, Any] = {}
        self.forgotten: set[str] = set()
        self.reachable = True
        self.log: list[str] = []
        self.neighbors = BoardNeighbors(self, name, self.call, self.log.append)

    def state_of(self, id: str) -> JobState | None:
        return self.jobs.get(id)

    def cancel(self, id: str) -> bool:
        return self.jobs.pop(id, None) is not None

    def forget(self, person: str) -> None:
        self.forgotten.add(person)

    def metrics_text(self) -> bytes:
        return gauge(len(self.jobs))

    async def call(self, method: str, *values: Any) -> Any:
        if not self.reachable:
            raise ConnectionError("no board")
        return await getattr(self.board, method)(*values)


def gauge(value: float) -> bytes:
    registry = CollectorRegistry()
    Gauge("infid_jobs", "Jobs", registry=registry).set(value)
    return generate_latest(registry)


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[FakeServer, FakeServer]]:
    board = Board()
    servers = FakeServer("a", board), FakeServer("b", board)
    running = [asyncio.create_task(each.neighbors.run()) for each in servers]
    await asyncio.sleep(0.01)  # both have been at the board
    try:
        yield servers
    finally:
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def on_two_servers(test: Callable[[FakeServer, FakeServer], Awaitable[None]]) -> None:
    async def run() -> None:
        async with two_servers() as servers:
            await test(*servers)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "EVERY", 0.02)
    monkeypatch.setattr(boards, "_SETTLES", 0.1)


def test_a_job_is_found_and_cancelled_on_another_server() -> None:
    async def test(a: FakeServer, b: FakeServer) -> None:
        b.jobs["job-of-b"] = DRAWING
        assert await a.neighbors.find("job-of-b") == DRAWING
        assert await a.neighbors.cancel("job-of-b")
        await asyncio.sleep(0.01)
        assert b.jobs == {}

    on_two_servers(test)


def test_a_job_that_no_server_has_is_not_found_once_all_were_asked() -> None:
    async def test(a: FakeServer, b: FakeServer) -> None:
        assert await a.neighbors.find("nowhere") is None
        assert not await a.neighbors.cancel("nowhere")

    on_two_servers(test)


def test_a_job_that_began_while_its_server_was_at_the_board_is_found() -> None:
    async def test() -> None:
        board = Board()
        await asyncio.sleep(boards._SETTLES)
        await board.exchange("b", {}, [])
        asking = asyncio.create_task(board.find("new"))
        await asyncio.sleep(0)
        await board.exchange("b", {}, [])  # what b had when the question was not yet asked
        await asyncio.sleep(0.01)
        assert not asking.done()
        await board.exchange("b", {"new": DRAWING}, [])
        assert await asking == DRAWING

    asyncio.run(test())


def test_a_new_board_does_not_say_that_a_job_is_nowhere() -> None:
    async def test() -> None:
        board = Board()
        asking = asyncio.create_task(board.find("job-of-b"))
        for _ in range(2):
            await board.exchange("a", {}, [])
            await asyncio.sleep(0.01)
        assert not asking.done()
        await board.exchange("b", {"job-of-b": DRAWING}, [])
        assert await asking == DRAWING

    asyncio.run(test())


def test_an_erased_person_is_forgotten_by_all_before_the_answer() -> None:
    async def test(a: FakeServer, b: FakeServer) -> None:
        await a.neighbors.erased("anna")
        await asyncio.sleep(0)
        assert b.forgotten == a.forgotten == {"anna"}

    on_two_servers(test)


def test_who_was_erased_without_the_board_is_told_when_it_is_back() -> None:
    async def test(a: FakeServer, b: FakeServer) -> None:
        a.reachable = False
        await a.neighbors.erased("anna")
        assert b.forgotten == set()
        with pytest.raises(Problem, match="cannot be reached") as caught:
            await a.neighbors.cancel("job-of-b")
        assert caught.value.status == 503
        await asyncio.sleep(0.05)
        assert len(a.log) == 1  # once, however often it tried
        a.reachable = True
        await asyncio.sleep(0.1)
        assert b.forgotten == {"anna"}

    on_two_servers(test)


def test_a_server_that_died_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_GONE", 0.1)

    async def test(a: FakeServer, b: FakeServer) -> None:
        dead = FakeServer("dead", a.board)
        dead.jobs["lost"] = DRAWING
        await dead.neighbors._exchange()
        assert await a.neighbors.find("lost") == DRAWING
        await asyncio.sleep(0.15)
        assert await a.neighbors.find("lost") is None

    on_two_servers(test)


def test_metrics_of_all_servers_are_one_text() -> None:
    async def test(a: FakeServer, b: FakeServer) -> None:
        a.jobs["one"] = b.jobs["two"] = b.jobs["three"] = DRAWING
        text = await a.neighbors.metrics(a.metrics_text())
        (family,) = text_string_to_metric_families(text.decode())
        assert {(each.labels["replica"], each.value) for each in family.samples} == {("a", 1.0), ("b", 2.0)}

    on_two_servers(test)


def test_merged_metrics_keep_labels_and_types() -> None:
    text = b'# HELP x_total X\n# TYPE x_total counter\nx_total{route="/a"} 2.0\n'
    found = merged({"one": text, "two": text}).decode()
    assert found.count("# TYPE x_total counter") == 1
    assert 'x_total{replica="one",route="/a"} 2.0' in found
    assert 'x_total{replica="two",route="/a"} 2.0' in found


def test_a_server_that_is_alone_has_no_neighbors() -> None:
    async def test() -> None:
        alone = NoNeighbors()
        assert await alone.find("job") is None
        assert not await alone.cancel("job")
        await alone.erased("anna")
        assert await alone.metrics(b"own") == b"own"

    asyncio.run(test())
