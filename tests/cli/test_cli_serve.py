"""`infid-export serve` as a process: how it starts, what stops it, and what it says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import dot_png
from tiny_engines import write_folder

from infid_export.cli.main import run

IDS = [f"request-{number}" for number in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


class Process:
    """A server as a process of its own."""

    def __init__(self, folder: Path, place: Path, *arguments: str) -> None:
        self.errors, self.access = place / "errors.txt", place / "access.txt"
        command = [sys.executable, "-m", "infid_export", "serve", str(folder), "--port", "0", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.errors.open("w") as errors, self.access.open("w") as access:
            self.process = subprocess.Popen(command, stderr=errors, stdout=access, env=environment)
        self.url = self._wait(lambda: next(word for word in self.errors.read_text().split() if word.startswith("http")))
        self.url = self.url.rstrip(":")
        self._wait(lambda: httpx.get(f"{self.url}/readyz").raise_for_status())

    def _wait(self, condition: Any) -> Any:
        end = time.monotonic() + 60
        while True:
            try:
                return condition()
            except (StopIteration, httpx.HTTPError):
                assert self.process.poll() is None, self.errors.read_text()
                assert time.monotonic() < end, self.errors.read_text()
                time.sleep(0.05)

    def generate(self, body: dict[str, Any], id: str) -> httpx.Response:
        name = {"x-request-id": id}
        return httpx.post(f"{self.url}/v1/images/generations", json=body, headers=name, timeout=60)

    def wait_for_jobs(self, ids: list[str], asked: list[Future[httpx.Response]]) -> None:
        """Wait until all requests have arrived."""
        for id, each in zip(ids, asked, strict=True):
            while not each.done() and httpx.get(f"{self.url}/v1/jobs/{id}").status_code == 404:
                time.sleep(0.01)

    def enroll(self) -> str:
        answer = httpx.post(f"{self.url}/v1/people", files={"image": dot_png()}, timeout=30)
        return str(answer.raise_for_status().json()["id"])


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Any]:
    started: list[Process] = []

    def call(*arguments: str) -> Process:
        started.append(Process(folder, tmp_path, *arguments))
        return started[-1]

    yield call
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_drawing_finishes_the_images(start: Any, stop: signal.Signals) -> None:
    server = start("--max-steps", "20000")
    person = server.enroll()
    body = {"prompt": "a", "person": person, "steps": 900, "seed": 1}
    with ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(httpx.post, f"{server.url}/v1/images/generations", json=body, timeout=60) for _ in range(3)
        ]
        time.sleep(0.3)
        server.process.send_signal(stop)
        answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
    assert server.process.wait(20) == 0
    assert "stopping; requests that wait are finished for 30 s" in server.errors.read_text()
    assert "Traceback" not in server.errors.read_text()
    routes = [json.loads(line)["route"] for line in server.access.read_text().splitlines()]
    assert routes.count("/v1/images/generations") == 3


def test_after_the_grace_the_clients_get_an_error_and_the_process_ends(start: Any) -> None:
    server = start("--max-steps", "1000", "--max-images", "1000", "--grace", "0.2")
    body = {"prompt": "a", "person": server.enroll(), "steps": 900, "n": 1000}  # minutes of work on the tiny engines
    with ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(httpx.post, f"{server.url}/v1/images/generations", json=body, timeout=60) for _ in range(3)
        ]
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        statuses = [each.result().status_code for each in asked]
    assert 503 in statuses
    assert set(statuses) <= {200, 503}
    assert server.process.wait(20) == 0


def test_a_second_server_on_the_port_is_told_so(start: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = start().url.rpartition(":")[2]
    assert run(["serve", str(folder), "--port", port]) == 1
    printed = capsys.readouterr()
    assert f"error: Port {port} on 127.0.0.1 is in use" in printed.err
    assert "fix: Choose another with --port." in printed.err
    assert printed.out == ""


def test_it_says_where_it_listens_as_a_document(start: Any) -> None:
    server = start("--json")
    document = json.JSONDecoder().raw_decode(server.access.read_text())[0]
    assert document == {"url": server.url, "backend": "onnxruntime", "device": "cpu"}


def bad(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["serve", *arguments]) == 1
    return capsys.readouterr().err


def test_other_machines_need_a_token(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = bad([str(folder), "--host", "0.0.0.0"], capsys)
    assert "On 0.0.0.0, other machines can reach the server, so it needs a token." in said
    assert "openssl rand -hex 32 > token; then add --token-file token" in said
    token = tmp_path / "token"
    for content in (b"", b"short\n", "ä".encode() * 20, None):
        if content is None:
            token.unlink()
        else:
            token.write_bytes(content)
        said = bad([str(folder), "--host", "0.0.0.0", "--token-file", str(token)], capsys)
        assert f"The token file {token} " in said
        assert "openssl rand" in said


def test_bad_arguments(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    cases = {
        ("--port", "70000"): "There is no port 70000",
        ("--host", "no.such.host.invalid", "--token-file", "token"): "There is no host 'no.such.host.invalid'",
        ("--queue", "0"): "The queue must have room for a request, not 0",
        ("--grace", "-1"): "--grace must be 0 or more, not -1",
        ("--max-steps", "0"): "The limit of steps must be at least 1, not 0",
        ("--people", str(tmp_path / "file/people")): "The folder of people",
        ("--templates", str(tmp_path / "file/templates")): "The folder of cached templates cannot be used",
        ("--backend", "tensorrt"): "tensorrt",
    }
    (tmp_path / "token").write_text("0123456789abcdef")
    monkeypatch.chdir(tmp_path)
    for arguments, message in cases.items():
        assert message in bad([str(folder), "--port", "0", *arguments], capsys)
    assert "nothing is not an engine folder" in bad([str(tmp_path / "nothing")], capsys)


def test_without_the_extra_it_says_how_to_install_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("infid_export.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    said = bad([str(folder)], capsys)
    assert "`infid-export serve` needs fastapi, which is not installed." in said
    assert 'pip install "infid-export[serve]"' in said


def test_a_port_of_0_is_a_free_one(start: Any) -> None:
    with socket.create_connection(("127.0.0.1", int(start().url.rpartition(":")[2]))):
        pass
