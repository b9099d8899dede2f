"""Every example runs, with few steps."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from document_blocks import ROOT
from PIL import Image
from safetensors import safe_open

from infid_export.runtime.pipeline import Pipeline

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


def test_all_examples_are_run_here() -> None:
    text = Path(__file__).read_text()
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert [script.name[0] for script in scripts] == ["1", "2", "3", "4", "5"]
    assert [script.name for script in scripts if f'"{script.name}"' not in text] == []


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
    """The example's server, on a free port of this machine."""
    spec = importlib.util.spec_from_file_location("web_handler", EXAMPLES / "5_web_handler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Handler.log_message = lambda *_: None
    with Pipeline.load(quick_folder) as pipe, module.PictureServer(("127.0.0.1", 0), pipe) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def post(server: Any, path: str, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_web_handler(server: Any, portrait: Image.Image) -> None:
    photo = BytesIO()
    portrait.save(photo, format="PNG")
    status, answer = post(server, "/people", photo.getvalue())
    assert status == 200
    person = json.loads(answer)["person"]
    asked = {"person": person, "prompt": "a photo of a person at night", "seed": 0}
    status, picture = post(server, "/pictures", json.dumps(asked).encode())
    assert (status, Image.open(BytesIO(picture)).size) == (200, SIZE)
    status, answer = post(server, "/people", b"no photo")
    assert status == 400
    assert json.loads(answer)["fix"]
    rejected = [("/pictures", b"{}"), ("/pictures", b"[1]"), ("/people", b""), ("/nowhere", b"x")]
    assert [post(server, path, body)[0] for path, body in rejected] == [400, 400, 413, 404]
    taken = [server.places.acquire(blocking=False) for _ in range(8)]
    assert all(taken)
    assert post(server, "/pictures", json.dumps(asked).encode())[0] == 429
