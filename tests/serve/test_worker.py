"""Rounds: one job's fault is one job's, damaged engines stop the server, and text streams are shared."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gate import Gate
from running import Running, options_of, running, wait_until
from tiny_engines import write_folder

from infid_engines.errors import EngineFolderError, NonFiniteError
from infid_engines.manifest import Manifest


@pytest.fixture
def gate(fresh: Running) -> Iterator[Gate]:
    found = Gate(fresh)
    yield found
    found.open.set()


@pytest.fixture
def ask(fresh: Running) -> Iterator[Any]:
    """Ask for images on a thread, and return the future response."""
    person = fresh.enroll()
    with ThreadPoolExecutor(12) as threads:

        def submit(prompt: str, **fields: Any) -> Future[httpx.Response]:
            body = {"prompt": prompt, "person": person, **fields}
            future = threads.submit(fresh.post, "/v1/images/generations", json=body)
            if "wait" not in fields:
                count = len(fresh.service.jobs)
                wait_until(lambda: len(fresh.service.jobs) > count or future.done())
            return future

        yield submit


def test_a_crash_is_the_500_of_one_job(fresh: Running, gate: Gate, ask: Any) -> None:
    gate.fails["bad"] = ZeroDivisionError("secret details")
    first = ask("first", seed=1)
    assert gate.entered.acquire(timeout=10)
    good, bad = ask("good", seed=1), ask("bad", seed=1)  # they would be drawn in one batch
    gate.open.set()
    assert [future.result().status_code for future in (first, good, bad)] == [200, 200, 500]
    error = bad.result().json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in bad.result().text
    assert "ZeroDivisionError: secret details" in "".join(fresh.log)
    assert gate.rounds == [1, 2, 1, 1]
    assert fresh.get("/readyz").status_code == 200
    assert fresh.metric('infid_images_total{outcome="failed"}') == 1
    assert fresh.metric('infid_images_total{outcome="done"}') == 2


def test_non_finite_values_fail_one_job(fresh: Running, gate: Gate, ask: Any) -> None:
    gate.fails["bad"] = NonFiniteError("The engines returned an image with NaN.", fix="Use fp32.")
    gate.open.set()
    assert ask("bad").result().json()["error"]["message"] == "The engines returned an image with NaN."
    assert ask("good").result().status_code == 200


def test_damaged_engines_stop_readiness(fresh: Running, gate: Gate, ask: Any) -> None:
    gate.fails["bad"] = EngineFolderError("denoise_step.onnx is damaged.", fix="Build it again.")
    bad = ask("bad")
    assert gate.entered.acquire(timeout=10)
    waiting = ask("waiting", steps=2)
    gate.open.set()
    assert bad.result().status_code == 500
    assert waiting.result().status_code == 503
    for _ in range(2):
        answer = fresh.get("/readyz")
        assert answer.status_code == 503
        problem = "The engines cannot be used. The server's log says what to do."
        assert answer.json() == {"status": "damaged", "problem": problem}
    assert fresh.log == ["error: denoise_step.onnx is damaged. Build it again."]
    assert ask("good").result().status_code == 503
    assert fresh.metric("infid_ready") == 0
    assert fresh.get("/healthz").status_code == 200


def test_engines_that_are_damaged_from_the_start_are_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines")
    (folder / "onnx" / "vae_decoder.onnx").write_bytes(b"damaged")
    with running(options_of(folder), ready=False) as server:
        wait_until(lambda: server.get("/readyz").json()["status"] == "damaged")
        assert "vae_decoder" not in server.get("/readyz").text
        assert "vae_decoder.onnx" in "".join(server.log)
        answer = server.post("/v1/images/generations", json={"prompt": "a", "person": "x"})
        assert answer.status_code in (404, 503)


def test_requests_while_the_engines_load_are_asked_to_try_again(tiny_folder: Path, monkeypatch: Any) -> None:
    loaded = threading.Event()
    monkeypatch.setattr("infid_export.serve.drawing.worker.Worker._warm_up", lambda self: loaded.wait(20))
    with running(options_of(tiny_folder), ready=False) as server:
        assert server.get("/healthz").status_code == 200
        assert server.get("/readyz").json()["status"] == "loading"
        answer = server.post("/v1/templates", json={"prompt": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        loaded.set()
        wait_until(lambda: server.get("/readyz").status_code == 200)


def test_customers_of_one_prompt_and_seed_share_a_text_stream(fresh: Running, gate: Gate, ask: Any) -> None:
    first = ask("other", seed=1)
    assert gate.entered.acquire(timeout=10)
    same = [ask("sketch", seed=7, style_strength=1.0) for _ in range(5)]
    gate.open.set()
    images = [future.result().json()["data"][0]["b64_json"] for future in same]
    assert len(set(images)) == 1
    assert first.result().status_code == 200
    counts = {
        kind: fresh.metric(f'infid_template_images_total{{template="{kind}"}}') for kind in ("none", "made", "hit")
    }
    assert counts == {"none": 1, "made": 2, "hit": 3}
    assert gate.rounds == [1, 2, 2, 1]
    alone = ask("sketch", seed=7).result()
    assert alone.json()["data"][0]["b64_json"] == images[0]
    assert fresh.metric('infid_template_images_total{template="hit"}') == 4


def test_a_shared_image_is_the_same_as_one_alone(fresh: Running, gate: Gate, ask: Any) -> None:
    gate.open.set()
    alone = ask("sketch", seed=7).result().json()["data"][0]["b64_json"]
    gate.open.clear()
    blocker = ask("other")
    assert gate.entered.acquire(timeout=10)
    both = [ask("sketch", seed=7) for _ in range(2)]
    gate.open.set()
    assert blocker.result().status_code == 200
    assert {future.result().json()["data"][0]["b64_json"] for future in both} == {alone}


def test_a_folder_without_template_graphs_shares_nothing_and_says_why(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines")
    manifest = Manifest.load(folder)
    for name in ("text_step", "identity_step"):
        del manifest.graphs[name]
    manifest.write(folder)
    with running(options_of(folder)) as server:
        assert server.get("/v1/settings").json()["templates"] is False
        answer = server.post("/v1/templates", json={"prompt": "a"})
        assert answer.status_code == 400
        assert "--graph text_step --graph identity_step" in answer.json()["error"]["fix"]
        person = server.enroll()
        assert server.post("/v1/images/generations", json={"prompt": "a", "person": person}).status_code == 200
