"""Cancelling: by id, by hanging up, and when the server stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gate import Gate
from running import Running, dot_png, options_of, running, wait_until


@pytest.fixture
def slow(fresh: Running) -> Iterator[Any]:
    """A server whose steps wait for each other; `steps` counts them."""
    generate = fresh.service.pipe.generate
    steps: list[int] = []
    pause = threading.Event()

    def stepwise(*arguments: Any, previews: Any, **given: Any) -> Any:
        def on_step(index: int, latents: Any) -> None:
            previews(index, latents)
            steps.append(index)
            pause.wait(0.05)

        return generate(*arguments, previews=on_step, **given)

    fresh.service.pipe.generate = stepwise  # type: ignore[method-assign]
    yield fresh, steps
    pause.set()


def body(server: Running, **changes: Any) -> dict[str, Any]:
    return {"prompt": "a", "person": server.enroll(), "steps": 100, **changes}


def test_a_job_is_shown_and_cancelled_by_id(slow: Any) -> None:
    server, steps = slow
    asked = body(server)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(
            server.post, "/v1/images/generations", json=asked, headers={"x-request-id": "job-number-1"}
        )
        wait_until(lambda: len(steps) >= 3)
        job = server.get("/v1/jobs/job-number-1").json()
        assert {key: job[key] for key in ("id", "object", "state", "position", "steps")} == {
            "id": "job-number-1", "object": "job", "state": "drawing", "position": 0, "steps": 100,
        }  # fmt: skip
        assert job["step"] >= 3
        assert server.delete("/v1/jobs/job-number-1").json() == {
            "id": "job-number-1",
            "object": "job",
            "cancelled": True,
        }
        error = answer.result().json()["error"]
    assert (answer.result().status_code, error["code"]) == (499, "cancelled")
    wait_until(lambda: server.metric('infid_images_total{outcome="cancelled"}') == 1)
    assert len(steps) < 50
    for call in (server.get, server.delete):
        assert call("/v1/jobs/job-number-1").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_stops_the_engines(slow: Any, stream: bool) -> None:
    server, steps = slow
    asked = body(server, stream=stream, progress=True)
    with httpx.Client(timeout=1.5) as client:
        if stream:
            with client.stream("POST", f"{server.url}/v1/images/generations", json=asked) as answer:
                lines = answer.iter_lines()
                assert "infid.progress" in next(lines)
                wait_until(lambda: len(steps) >= 3)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/images/generations", json=asked)
    wait_until(lambda: not server.service.jobs)
    wait_until(lambda: server.metric('infid_images_total{outcome="cancelled"}') == 1)
    assert len(steps) < 50
    assert server.log == []
    assert server.post("/v1/images/generations", json={**asked, "stream": False, "steps": 2}).status_code == 200


def test_a_waiting_job_is_never_drawn_once_its_client_has_hung_up(fresh: Running) -> None:
    gate, asked = Gate(fresh), body(fresh, steps=2)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(fresh.post, "/v1/images/generations", json=asked)
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{fresh.url}/v1/images/generations", json={**asked, "steps": 3}, timeout=0.3)
        wait_until(lambda: len(fresh.service.jobs) == 1)
        gate.open.set()
        assert first.result().status_code == 200
    assert gate.rounds == [1]


def test_of_two_in_a_batch_one_is_cancelled_and_the_other_gets_its_image(slow: Any) -> None:
    server, steps = slow
    asked = body(server)
    with ThreadPoolExecutor(3) as threads:

        def ask(name: str, steps: int) -> Future[httpx.Response]:
            given = {"json": {**asked, "steps": steps}, "headers": {"x-request-id": name}}
            return threads.submit(server.post, "/v1/images/generations", **given)

        before = ask("before-them", 10)
        wait_until(lambda: len(steps) >= 1)
        both = [ask(f"together-{number}", 30) for number in range(2)]
        wait_until(lambda: len(server.service.queue) == 2)
        wait_until(before.done)
        wait_until(lambda: server.get("/v1/jobs/together-1").json().get("step", 0) >= 3)
        server.delete("/v1/jobs/together-0")
        assert [answer.result().status_code for answer in both] == [499, 200]


def test_an_id_in_use_is_rejected(slow: Any) -> None:
    server, steps = slow
    asked, name = body(server), {"x-request-id": "job-number-1"}
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(server.post, "/v1/images/generations", json=asked, headers=name)
        wait_until(lambda: len(steps) >= 1)
        assert server.post("/v1/images/generations", json=asked, headers=name).status_code == 409
        server.delete("/v1/jobs/job-number-1")
        assert first.result().status_code == 499


def test_making_a_template_stops_when_the_client_hangs_up(fresh: Running) -> None:
    make, began, stopped = fresh.service.shelf.add, threading.Event(), threading.Event()

    def waits(settings: Any, *, cancel: threading.Event, **given: Any) -> Any:
        began.set()
        if cancel.wait(10):
            stopped.set()
        return make(settings, cancel=cancel, **given)

    fresh.service.shelf.add = waits  # type: ignore[method-assign]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{fresh.url}/v1/templates", json={"prompt": "a"}, timeout=2)
    assert began.is_set()
    assert stopped.wait(10)
    assert fresh.get("/v1/templates").json()["data"] == []


def test_a_full_queue_answers_429(tiny_folder: Path) -> None:
    with running(options_of(tiny_folder, queue=2)) as server:
        gate, asked = Gate(server), body(server, steps=2)
        with ThreadPoolExecutor(3) as threads:
            taken = [threads.submit(server.post, "/v1/images/generations", json={**asked, "seed": 1, "steps": 3})]
            assert gate.entered.acquire(timeout=10)
            taken += [threads.submit(server.post, "/v1/images/generations", json=asked) for _ in range(2)]
            wait_until(lambda: len(server.service.queue) == 2)
            answer = server.post("/v1/images/generations", json=asked)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            assert server.metric("infid_queue_length") == 2
            gate.open.set()
            assert [each.result().status_code for each in taken] == [200] * 3


def test_stopping_finishes_what_waits_and_takes_nothing_new(tiny_folder: Path) -> None:
    with running(options_of(tiny_folder)) as server:
        gate, asked = Gate(server), body(server, steps=2)
        threads = ThreadPoolExecutor(2)
        taken = [threads.submit(server.post, "/v1/images/generations", json=asked)]
        assert gate.entered.acquire(timeout=10)
        taken += [threads.submit(server.post, "/v1/images/generations", json=asked)]
        wait_until(lambda: len(server.service.queue) == 1)
        with httpx.Client() as kept_open:
            server.service.worker.stop()
            assert kept_open.get(f"{server.url}/readyz").json()["status"] == "stopping"
            late = kept_open.post(f"{server.url}/v1/images/edits", files={"image": dot_png()}, data={"prompt": "a"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")
        gate.open.set()
    assert [each.result().status_code for each in taken] == [200, 200]


def test_after_the_grace_everybody_is_told_to_try_again(tiny_folder: Path) -> None:
    threads = ThreadPoolExecutor(2)
    with running(options_of(tiny_folder), grace=0.3) as server:
        gate, asked = Gate(server), body(server, steps=2)
        taken = [threads.submit(server.post, "/v1/images/generations", json=asked)]
        assert gate.entered.acquire(timeout=10)
        taken += [threads.submit(server.post, "/v1/images/generations", json={**asked, "stream": True})]
        wait_until(lambda: len(server.service.queue) == 1)
        threading.Timer(1.0, gate.open.set).start()
    first, second = (each.result() for each in taken)
    assert (first.status_code, first.json()["error"]["code"]) == (503, "stopping")
    assert '"code": "stopping"' in second.text
