"""Faults that hostile requests have found in the guard."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import TOKEN, Running, options_of, running, wait_until


@pytest.fixture(scope="module")
def guarded(tiny_folder: Path) -> Iterator[Running]:
    """A server with a token."""
    with running(options_of(tiny_folder, tokens=(TOKEN,))) as server:
        yield server


def status_of(server: Running, content: bytes) -> int:
    """Send bytes that no HTTP library would, and return the answer's status."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(content)
        return int(connection.recv(4096).split(b" ")[1])


@pytest.mark.parametrize("host", ["[", "]", "[::1", "[x]", "a[b", ""])
def test_a_damaged_host_is_not_served(tiny: Running, guarded: Running, host: str) -> None:
    assert status_of(tiny, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == 403
    assert status_of(guarded, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) == 200
    assert [line for line in (*tiny.log, *guarded.log) if "Traceback" in line] == []


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "https://]", "[", "http://[x]"])
def test_a_page_of_a_damaged_origin_may_not_call(tiny: Running, origin: str) -> None:
    head = f"POST /v1/templates HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Length: 0\r\n\r\n"
    assert status_of(tiny, head.encode()) == 403
    assert status_of(tiny, head.replace("POST /v1/templates", "GET /healthz").encode()) == 200


def test_a_bug_is_counted_as_500_and_has_an_id(fresh: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise RuntimeError("of a secret")

    monkeypatch.setattr(fresh.service.people, "list", bug)
    answer = fresh.get("/v1/people", headers={"x-request-id": "abcdefgh"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "abcdefgh")
    assert (answer.json()["error"]["code"], "secret" in answer.text) == ("internal_error", False)
    wait_until(lambda: fresh.access and json.loads(fresh.access[-1])["status"] == 500)
    assert fresh.metric('infid_requests_total{method="GET",route="/v1/people",status="500"}') == 1
