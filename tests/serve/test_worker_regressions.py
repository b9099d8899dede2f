"""Faults that were found in the thread that draws."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gate import Gate
from running import Running, options_of, running, wait_until

from infid_engines.errors import DiskFullError


def test_a_folder_of_templates_that_is_gone_stops_nobody(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    with running(options_of(tiny_folder, templates=folder)) as server:
        body = {"prompt": "a", "person": server.enroll()}
        folder.rename(tmp_path / "moved")
        folder.write_text("a file")
        assert server.post("/v1/images/generations", json=body).status_code == 200
        assert server.post("/v1/templates", json={"prompt": "a"}).status_code == 400
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        assert server.post("/v1/templates", json={"prompt": "a"}).status_code == 201


def test_a_bug_in_the_queue_answers_everybody(fresh: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError("x")

    body = {"prompt": "a", "person": fresh.enroll()}
    monkeypatch.setattr(fresh.service.queue, "_round", bug)
    assert fresh.post("/v1/images/generations", json=body).status_code == 503
    wait_until(lambda: fresh.get("/readyz").status_code == 503)
    assert "RuntimeError: x" in "".join(fresh.log)
    assert fresh.post("/v1/images/generations", json=body).status_code == 503


def test_a_template_that_nobody_asked_for_may_fail(fresh: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests of one prompt and seed share a template; if the disk is full, they are drawn without."""
    person, gate = fresh.enroll(), Gate(fresh)

    def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("The disk is full.", fix="Delete something.")

    def ask(prompt: str) -> int:
        body = {"prompt": prompt, "seed": 1, "person": person}
        return fresh.post("/v1/images/generations", json=body).status_code

    monkeypatch.setattr(fresh.service.shelf, "stream", full)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(ask, "a")
        assert gate.entered.acquire(timeout=20)
        others = [threads.submit(ask, "b") for _ in range(2)]
        wait_until(lambda: len(fresh.service.queue) == 2)
        gate.open.set()
        assert [each.result() for each in (first, *others)] == [200, 200, 200]
