"""Every example runs, with few steps."""

from __future__ import annotations

import importlib.util
import json
import runpy
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from document_blocks import ROOT
from PIL import Image
from safetensors import safe_open

EXAMPLES = ROOT / "examples"
SIZE = (128, 128)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an example as a script, in an empty folder."""

    def call(name: str, *arguments: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return call


def test_all_examples_are_run_and_listed() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [script.name[0] for script in scripts] == ["1", "2", "3", "4", "5", "6", "7"]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [script.name for script in scripts if f'{script.name}"' not in tests] == []
    listed = (EXAMPLES / "README.md").read_text()
    assert [script.name for script in scripts if f"]({script.name})" not in listed] == []


def test_enroll_and_generate(run: Any, quick_folder: Path, tmp_path: Path) -> None:
    run("1_enroll_and_generate.py", "--engines", quick_folder)
    assert Image.open(tmp_path / "pictures/beach.png").size == SIZE
    assert (tmp_path / "pictures/anna.safetensors").stat().st_mode & 0o777 == 0o600


def test_your_own_checkpoint(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("2_your_own_checkpoint.py", "--graph", "identity_encoder")
    assert (tmp_path / "own/infid-engines/onnx/identity_encoder.onnx").is_file()
    assert capsys.readouterr().out.count("PASSED identity_encoder.") == 3


def test_train_on_ten_people(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("3_train_on_ten_people.py", "--steps", 1)
    identity = tmp_path / "training/run/identity.safetensors"
    with safe_open(identity, framework="numpy") as file:
        assert "infid_config" in file.metadata()
    assert "20 photos, 0 dropped" in capsys.readouterr().out


def test_prompts_with_a_callback(
    run: Any, quick_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("4_prompts_with_a_callback.py", "--engines", quick_folder)
    assert [Image.open(tmp_path / f"pictures/{number}.png").size for number in range(3)] == [SIZE] * 3
    assert capsys.readouterr().out.count("step 1 at timestep") == 3
    run("4_prompts_with_a_callback.py", "--engines", quick_folder, "--seconds", 0, "-o", "none")
    assert list((tmp_path / "none").iterdir()) == []
    assert "cancelled" in capsys.readouterr().out


@pytest.fixture
def server(quick_folder: Path) -> Iterator[Any]:
    """The example's application in uvicorn, on a free port of this machine."""
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    spec = importlib.util.spec_from_file_location("your_own_server", EXAMPLES / "5_your_own_server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where FastAPI finds the types that annotations name
    spec.loader.exec_module(module)
    module.MAX_BYTES, module.PLACES = 1_000_000, 2
    app = module.make_app(quick_folder)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield SimpleNamespace(port=server.servers[0].sockets[0].getsockname()[1], pipe=app.state.pipe)
    server.should_exit = True
    thread.join()
    del sys.modules[spec.name]


def post(server: Any, path: str, body: bytes | dict[str, Any]) -> tuple[int, bytes, Any]:
    kind = "application/json" if isinstance(body, dict) else "application/octet-stream"
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


@pytest.fixture
def asked(server: Any, portrait: Image.Image) -> dict[str, Any]:
    """A request for an image of an enrolled person."""
    photo = BytesIO()
    portrait.save(photo, format="PNG")
    status, answer, _ = post(server, "/people", photo.getvalue())
    assert status == 200
    return {"person": json.loads(answer)["person"], "prompt": "a photo of a person at night", "seed": 0}


@pytest.fixture
def held(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A generation that waits in its first step: events of its begin and end, its steps, and what makes it go on."""
    events = SimpleNamespace(begun=threading.Event(), go_on=threading.Event(), ended=threading.Event(), steps=[])
    generate = server.pipe.generate

    def wait(index: int, *_: Any) -> None:
        events.steps.append(index)
        events.begun.set()
        assert events.go_on.wait(60)

    def slow(*arguments: Any, cancel: threading.Event, **settings: Any) -> Any:
        events.cancel = cancel
        try:
            return generate(*arguments, **settings, cancel=cancel, steps=4, callback=wait)
        finally:
            events.ended.set()

    monkeypatch.setattr(server.pipe, "generate", slow)
    return events


def test_your_own_server(server: Any, asked: dict[str, Any]) -> None:
    status, picture, headers = post(server, "/pictures", asked)
    assert (status, headers["Content-Type"], Image.open(BytesIO(picture)).size) == (200, "image/png", SIZE)
    assert post(server, "/pictures", asked)[1] == picture
    for path, body, expected in (
        ("/people", b"no photo", 400),
        ("/people", b"", 400),
        ("/people", bytes(1_000_001), 413),
        ("/pictures", {**asked, "person": "nobody"}, 404),
        ("/pictures", {**asked, "seed": -1}, 400),
        ("/pictures", {"prompt": "a"}, 422),
        ("/nowhere", b"x", 404),
    ):
        status, answer, _ = post(server, path, body)
        assert status == expected, (path, body[:9] if isinstance(body, bytes) else body)
        assert expected != 400 or set(json.loads(answer)) == {"error", "fix"}


def test_your_own_server_has_a_bounded_queue(server: Any, asked: dict[str, Any], held: Any) -> None:
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(post(server, "/pictures", asked)[0])) for _ in range(2)]
    for client in clients:
        client.start()
    assert held.begun.wait(60)
    while (found := post(server, "/people", b"no photo"))[0] == 400:  # the second one has not come yet
        time.sleep(0.01)
    assert (found[0], found[2]["Retry-After"]) == (429, "5")
    held.go_on.set()
    for client in clients:
        client.join()
    assert answers == [200, 200]
    assert post(server, "/pictures", asked)[0] == 200


def test_a_client_of_your_own_server_that_hangs_up_stops_its_image(
    server: Any, asked: dict[str, Any], held: Any
) -> None:
    body = json.dumps(asked).encode()
    head = f"POST /pictures HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        assert held.begun.wait(60)
    assert held.cancel.wait(60), "the server did not see it"
    held.go_on.set()
    assert held.ended.wait(60)
    assert held.steps == [0]
    assert post(server, "/pictures", asked)[0] == 200
