"""Who may send what, how large and how slow; and what is logged."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running import TOKEN, Running, dot_png, options_of, running, wait_until

from infid_export.serve.options import Limits

OTHER = "https://shop.example"


@pytest.fixture(scope="module")
def guarded(tiny_folder: Path) -> Iterator[Running]:
    """A server with two tokens, an allowed origin and small limits."""
    options = options_of(
        tiny_folder, tokens=("another-token-of-16", TOKEN), origins=(OTHER,), limits=Limits(bytes=50_000)
    )
    with running(options) as server:
        yield server


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


PRIVATE = [
    "/v1/models",
    "/v1/settings",
    "/v1/people",
    "/v1/templates",
    "/metrics",
    "/openapi.json",
    "/v1/jobs/abcdefgh",
]


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong-token-of-16", f"Basic {TOKEN}", TOKEN, "Bearer ä"])
def test_without_a_token_there_is_nothing(guarded: Running, path: str, header: str | None) -> None:
    answer = guarded.get(path, headers={} if header is None else {"authorization": header.encode()})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/page/app.js"])
def test_what_is_open_without_a_token(guarded: Running, path: str) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("token", [TOKEN, "another-token-of-16"])
def test_each_token_opens(guarded: Running, token: str) -> None:
    assert [guarded.get(path, headers=bearer(token)).status_code for path in PRIVATE[:-1]] == [200] * 6
    assert guarded.get(PRIVATE[0], headers={"authorization": f"bearer {token}"}).status_code == 200


def test_the_official_client_reports_a_wrong_token(guarded: Running) -> None:
    with pytest.raises(openai.AuthenticationError, match="The token is missing or wrong"):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_pages_of_other_sites_may_not_call(guarded: Running, tiny: Running) -> None:
    own = tiny.url
    for origin, status in ((own, 201), ("https://evil.example", 403), ("null", 403), (OTHER, 403)):
        answer = tiny.post("/v1/people", files={"image": dot_png()}, headers={"origin": origin})
        assert answer.status_code == status
    answer = guarded.post("/v1/people", files={"image": dot_png()}, headers={"origin": OTHER, **bearer()})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, OTHER)
    asked = {"origin": OTHER, "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    assert httpx.options(f"{guarded.url}/v1/images/generations", headers=asked).status_code == 200
    asked["origin"] = "https://evil.example"
    assert httpx.options(f"{guarded.url}/v1/images/generations", headers=asked).status_code == 400


def test_a_name_that_resolves_to_this_machine_is_no_way_in(guarded: Running, tiny: Running) -> None:
    """A site that has its own name resolve to 127.0.0.1 would be same-origin for a browser."""
    for host, status in (("evil.example", 403), ("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:5", 200), ("", 403)):
        assert tiny.get("/v1/models", headers={"host": host}).status_code == status
    assert guarded.get("/v1/models", headers={"host": "proxy.example", **bearer()}).status_code == 200


def test_large_bodies_are_rejected_before_they_are_read(guarded: Running) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    form = {"content-type": "multipart/form-data; boundary=x", **bearer()}
    for content in (b"x" * 50_001, chunks()):
        answer = guarded.post("/v1/people", content=content, headers=form)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    answer = guarded.post("/v1/images/generations", content=b" " * 60_000, headers=bearer())
    assert answer.status_code == 413


def test_all_uploads_together_are_limited(guarded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infid_export.serve.http.guard._UPLOADS", 1)  # 50,000 bytes
    port = int(guarded.url.rpartition(":")[2])
    head = f"POST /v1/people HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 45000\r\n\r\n"
    small = {"files": {"image": dot_png()}, "headers": bearer()}
    with socket.create_connection(("127.0.0.1", port), timeout=10) as unfinished:
        unfinished.sendall((head + form).encode() + b"x" * 44_000)

        def answer() -> httpx.Response:
            return guarded.post(
                "/v1/people", content=b"x" * 20_000, headers={**bearer(), "content-type": "multipart/form-data"}
            )

        wait_until(lambda: answer().status_code == 429)
        assert answer().headers["retry-after"] == "1"
    wait_until(lambda: guarded.post("/v1/people", **small).status_code == 201)


def test_a_slow_body_is_given_up(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infid_export.serve.http.guard._READ_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", int(tiny.url.rpartition(":")[2])), timeout=10) as connection:
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 500\r\n\r\n{{".encode())
        start = time.monotonic()
        answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert 0.2 < time.monotonic() - start < 5


def test_a_connection_that_says_nothing_or_half_a_header_is_closed(tiny: Running, monkeypatch: Any) -> None:
    monkeypatch.setattr("infid_export.serve.http.connections.LOOKS_EVERY", 0.2)
    address = "127.0.0.1", int(tiny.url.rpartition(":")[2])
    for content in (b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(content)
            try:
                while connection.recv(65536):
                    pass
            except ConnectionResetError:
                pass


def test_a_client_that_does_not_read_is_closed(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's script is small, so many requests are sent on one connection, and no answer is read."""
    monkeypatch.setattr("infid_export.serve.http.connections.LOOKS_EVERY", 0.3)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", int(tiny.url.rpartition(":")[2])))
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"

        def send_on() -> None:
            for _ in range(2000):
                connection.sendall(request * 20)
                time.sleep(0.01)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            send_on()


def test_each_request_has_an_id_and_a_line_without_content(tiny: Running) -> None:
    person = tiny.enroll(name="Secret Name")
    wait_until(lambda: tiny.access and "/v1/people" in tiny.access[-1])  # it is written after the response
    tiny.access.clear()
    body = {"prompt": "secret prompt", "person": person}
    answer = tiny.post("/v1/images/generations", json=body, headers={"x-request-id": "my-request-1"})
    assert answer.headers["x-request-id"] == "my-request-1"
    for bad in ("short", "x" * 65, "has space in it", "ä" * 10):
        answer = tiny.get("/healthz", headers={"x-request-id": bad.encode()})
        assert answer.headers["x-request-id"] != bad
        assert len(answer.headers["x-request-id"]) == 24
    tiny.get(f"/v1/people/{person}")
    tiny.get("/no/such/secret")
    wait_until(lambda: len(tiny.access) == 7)
    lines = [json.loads(line) for line in tiny.access]
    assert set(lines[0]) == {"time", "request_id", "method", "route", "status", "ms", "bytes"}
    assert [lines[0][key] for key in ("request_id", "method", "route", "status")] == [
        "my-request-1", "POST", "/v1/images/generations", 200,
    ]  # fmt: skip
    assert lines[0]["bytes"] > 100
    assert [line["route"] for line in lines[5:]] == ["/v1/people/{id}", "other"]
    assert "ecret" not in "".join(tiny.access)
    assert person not in "".join(tiny.access)


def test_routes_that_do_not_exist_say_where_to_look(tiny: Running) -> None:
    for path, method in (
        ("/nowhere", "GET"),
        ("/v1/models", "POST"),
        ("/page/../app.py", "GET"),
        ("/page/x.js", "GET"),
    ):
        answer = httpx.request(method, tiny.url + path)
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["fix"]


def test_metrics_are_counted(fresh: Running) -> None:
    person = fresh.enroll()
    for _ in range(3):
        fresh.post("/v1/images/generations", json={"prompt": "a", "person": person, "n": 2})
    fresh.post("/v1/images/generations", json={"prompt": "a"})
    names = {
        'infid_images_total{outcome="done"}': 6, "infid_wait_seconds_count": 3, "infid_round_seconds_count": 3,
        "infid_round_images_sum": 6, "infid_queue_length": 0, "infid_ready": 1,
        'infid_requests_total{method="POST",route="/v1/images/generations",status="200"}': 3,
        'infid_requests_total{method="POST",route="/v1/images/generations",status="400"}': 1,
    }  # fmt: skip
    assert {name: fresh.metric(name) for name in names} == names
    assert fresh.metric("infid_people_bytes") > 0
    assert fresh.metric("process_resident_memory_bytes") > 1e7


def test_the_page_may_load_nothing_from_elsewhere(tiny: Running) -> None:
    headers = tiny.get("/").headers
    policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
