"""Faults that were found in how people are kept."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import Running, dot_png, options_of, running, wait_until


def test_a_damaged_file_of_a_person_is_no_fault_of_the_server(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "people"
    with running(options_of(tiny_folder, people=folder)) as server:
        (folder / "broken.safetensors").write_bytes(b"broken")
        answer = server.get("/v1/people/broken")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "damaged_person")
        assert str(tmp_path) not in answer.text
        assert server.delete("/v1/people/broken").status_code == 200
        assert server.get("/v1/people/broken").json()["error"]["code"] == "not_found"


def test_nobody_is_enrolled_for_a_client_that_has_hung_up(fresh: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, left = threading.Event(), threading.Event()
    encode = fresh.service.pipe.encode

    def slow(*given: Any, **named: Any) -> Any:
        entered.set()
        assert left.wait(20)
        return encode(*given, **named)

    monkeypatch.setattr(fresh.service.pipe, "encode", slow)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{fresh.url}/v1/people", files={"image": dot_png()}, timeout=httpx.Timeout(20, read=1))
    assert entered.wait(20)
    wait_until(lambda: any(json.loads(line)["status"] == 499 for line in fresh.access))
    left.set()
    wait_until(lambda: not fresh.service.worker._drawing)
    assert fresh.get("/v1/people").json()["data"] == []
