"""What docs/serving.md shows is what a server does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from document_blocks import ROOT
from PIL import Image
from running import Running

from infid_export.serve.app import create_app
from infid_export.serve.options import ServeOptions

TEXT = (ROOT / "docs/serving.md").read_text()


def shape_of(line: str) -> str:
    """Return a line of the transcript without numbers: sizes and scores depend on the processor."""
    return re.sub(r"\(?[\d,.]+\d( bytes\))?", "#", line)


def test_the_transcript_is_that_of_the_example(
    server: Running,
    portrait: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    portrait.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["client", "--photo", "photo.png", "--url", server.url])
    runpy.run_path(str(ROOT / "examples/6_openai_client.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    shown = re.search(r"<!-- transcript -->\n```text\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    assert [shape_of(line) for line in printed] == [shape_of(line) for line in shown[1].splitlines()]
    assert all(Image.open(path).size == (128, 128) for path in (tmp_path / "images").iterdir())


def test_the_commands_of_curl_work(server: Running, portrait: Image.Image, tmp_path: Path) -> None:
    portrait.save(tmp_path / "photo.png")
    commands = re.findall(r"^\$ (curl .+)$", TEXT, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        line = command.replace("http://127.0.0.1:8000", server.url).replace("curl", "curl --silent --show-error --fail")
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("{")


def test_the_routes_are_those_of_the_application(tiny_folder: Path) -> None:
    table = TEXT[TEXT.index("## Routes") : TEXT.index("Of OpenAI's fields")]
    documented = set()
    for cell in re.findall(r"`((?:GET|POST|DELETE)[^`]*)`", table):
        methods, _, path = cell.rpartition(" ")
        documented |= {(method, path) for method in methods.split(", ")}
    app = create_app(ServeOptions(tiny_folder))
    app.state.service.close()
    routes = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    own = {("GET", "/"), ("GET", "/openapi.json")}
    short = {("GET", "/v1/models/{id}"), ("GET", "/v1/templates/{id}/preview")}  # `…/preview`
    assert documented - {("GET", "…/preview")} == (routes | own) - short


def test_the_metrics_are_those_of_the_server(server: Running) -> None:
    text = server.get("/metrics").text
    for name in re.findall(r"`(infid_\w+)`", TEXT):
        if not name.startswith("infid_export"):
            assert f"# TYPE {name} " in text, name
