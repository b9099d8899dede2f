"""Two replicas on Ray, in processes of their own: this process talks HTTP to them, as clients do."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from PIL import Image
from tiny_engines import SIDE, write_folder

from infid_engines.errors import InputError
from infid_export.serve.http.problems import Problem

TOKEN = "0123456789abcdef"
PATIENCE = 300.0  # seconds: on busy cores, Ray takes more than a minute to start a process
LONG = {"n": 60, "steps": 900}  # many seconds, with the tiny engines
REPLICA = "ServeReplica:infid-export:infid-export"
BOARD = "ServeReplica:infid-export:job-board"
PROGRAM = "from infid_export.cli.main import entry_point; entry_point()"


@dataclass
class Cluster:
    """The command `serve --ray`, with its replicas."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def http(self) -> httpx.Client:
        """Return a client with connections of its own."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, headers={"authorization": f"Bearer {TOKEN}"})

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the processes of a deployment."""
        return [each for each in psutil.Process(self.process.pid).children(recursive=True) if title in title_of(each)]

    def kill(self, title: str) -> int:
        """Kill one process of a deployment, as a crash or the system would."""
        victim = self.processes(title)[0]
        victim.kill()
        return victim.pid


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def environment() -> dict[str, str]:
    paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny engines and a file of tokens."""
    folder = tmp_path_factory.mktemp("ray")
    write_folder(folder / "engines")
    (folder / "token").write_text(TOKEN)
    return folder


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    words = [
        "serve", place / "engines", "--ray", "--replicas", 2, "--threads", 1, "--port", 0, "--max-steps", 1000,
        "--max-images", 60,
        "--people", place / "people", "--templates", place / "templates", "--token-file", place / "token", "--json",
    ]  # fmt: skip
    log = place / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)], env=environment(), stdout=subprocess.PIPE,
            stderr=stderr, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        document = ""
        for line in process.stdout:
            document += line
            if line == "}\n":
                break
        assert document, log.read_text()
        yield Cluster(json.loads(document)["url"], process, log)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, log.read_text()
        assert "stopping; requests that wait are finished" in log.read_text()
        _, left = psutil.wait_procs(started, timeout=PATIENCE)
        assert left == []
    finally:
        process.kill()


@pytest.fixture
def http(cluster: Cluster) -> Iterator[httpx.Client]:
    with cluster.http() as client:
        yield client


def dot_png() -> bytes:
    """A photo with one face, for the tiny detector."""
    photo = np.full((320, 400, 3), 60, np.uint8)
    photo[160:164, 200:204] = 255
    content = BytesIO()
    Image.fromarray(photo).save(content, format="PNG")
    return content.getvalue()


def enroll(http: httpx.Client) -> tuple[str, str]:
    """Return a new person's id, and the replica that enrolled."""
    answer = http.post("/v1/people", files={"image": dot_png()}, data={"name": "dot"})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], answer.headers["x-infid-replica"]


def on_another(http: httpx.Client, replica: str, request: Callable[[], httpx.Response]) -> httpx.Response:
    """Repeat a request until another replica answers it."""
    for _ in range(40):
        answer = request()
        if answer.headers["x-infid-replica"] != replica:
            return answer
    raise AssertionError(f"only {replica} answers")


@dataclass
class Stream:
    """A request whose images take seconds; its events are read beside it."""

    id: str
    replica: str
    events: list[tuple[str, dict[str, Any]]]
    thread: threading.Thread

    def end(self) -> tuple[str, dict[str, Any]]:
        """Return the last event."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.events[-1]


def long_stream(cluster: Cluster, id: str, **fields: Any) -> Stream:
    """Start a request that takes seconds; return once it is drawn."""
    events: list[tuple[str, dict[str, Any]]] = []
    replica: list[str] = []

    def read() -> None:
        body = {"prompt": "a cat", **LONG, "stream": True, "progress": True, **fields}
        with (
            cluster.http() as http,
            http.stream("POST", "/v1/images/generations", json=body, headers={"x-request-id": id}) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            replica.append(answer.headers["x-infid-replica"])
            name = ""
            for line in answer.iter_lines():
                kind, _, value = line.partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data":
                    events.append((name, json.loads(value)))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    wait_until(lambda: any(event.get("step") for _, event in events) or not thread.is_alive())
    return Stream(id, replica[0], events, thread)


def test_the_load_spreads_over_both_replicas(cluster: Cluster, http: httpx.Client) -> None:
    person, _ = enroll(http)

    def ask(number: int) -> str:
        with cluster.http() as own:
            body = {"prompt": "a cat", "person": person, "n": 2, "steps": 100, "seed": number}
            answer = own.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 2
        return answer.headers["x-infid-replica"]

    with ThreadPoolExecutor(8) as pool:
        replicas = Counter(pool.map(ask, range(24)))
    assert len(replicas) == 2
    assert min(replicas.values()) >= 4
    lines = [line for line in http.get("/metrics").text.splitlines() if 'infid_images_total{outcome="done"' in line]
    done = {line.split('replica="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}
    assert done == {replica: 2.0 * count for replica, count in replicas.items()}


def test_clients_need_the_token_and_see_one_request_id(cluster: Cluster, http: httpx.Client) -> None:
    assert httpx.get(f"{cluster.url}/v1/people").status_code == 401
    assert httpx.get(f"{cluster.url}/readyz").json() == {"status": "ready"}
    answer = http.get("/v1/people", headers={"x-request-id": "chosen-by-the-client"})
    assert answer.headers.get_list("x-request-id") == ["chosen-by-the-client"]
    assert len(http.get("/v1/people").headers.get_list("x-request-id")) == 1


def test_a_person_enrolled_on_one_replica_is_usable_on_the_other(http: httpx.Client) -> None:
    person, replica = enroll(http)
    body = {"prompt": "a cat", "person": person, "seed": 3}
    first = http.post("/v1/images/generations", json=body)
    other = first.headers["x-infid-replica"]
    second = on_another(http, other, lambda: http.post("/v1/images/generations", json=body))
    assert {other, second.headers["x-infid-replica"]} >= {replica}
    images = [each.json()["data"][0]["b64_json"] for each in (first, second)]
    assert images[0] == images[1]
    assert Image.open(BytesIO(base64.b64decode(images[0]))).size == (SIDE, SIDE)


def test_a_template_made_on_one_replica_is_usable_on_the_other(http: httpx.Client) -> None:
    made = http.post("/v1/templates", json={"prompt": "a dog", "steps": 3})
    assert made.status_code == 201, made.text
    body = {"template": made.json()["id"], "person": enroll(http)[0]}
    answer = on_another(http, made.headers["x-infid-replica"], lambda: http.post("/v1/images/generations", json=body))
    assert answer.status_code == 200, answer.text


def test_a_request_is_found_and_cancelled_through_another_replica(cluster: Cluster, http: httpx.Client) -> None:
    person, _ = enroll(http)
    stream = long_stream(cluster, "job-that-is-cancelled", person=person)

    def shown() -> dict[str, Any]:
        return dict(on_another(http, stream.replica, lambda: http.get(f"/v1/jobs/{stream.id}")).json())

    wait_until(lambda: shown().get("state") == "drawing")
    assert shown()["steps"] == LONG["steps"]
    for number in range(10):  # the replica that has the request may be the one that is asked to cancel it
        answer = http.delete(f"/v1/jobs/{stream.id}")
        assert answer.json() == {"id": stream.id, "object": "job", "cancelled": True}
        name, event = stream.end()
        assert (name, event["error"]["code"]) == ("error", "cancelled")
        if answer.headers["x-infid-replica"] != stream.replica:
            break
        stream = long_stream(cluster, f"job-number-{number}", person=person)
    else:
        raise AssertionError("no other replica was asked")
    wait_until(lambda: http.get(f"/v1/jobs/{stream.id}").status_code == 404)
    assert http.delete(f"/v1/jobs/{stream.id}").json()["error"]["code"] == "not_found"


def test_erasing_a_person_stops_the_images_on_every_replica(cluster: Cluster, http: httpx.Client) -> None:
    person, _ = enroll(http)
    streams = [long_stream(cluster, "job-of-one-replica", person=person)]
    for number in range(10):
        streams.append(long_stream(cluster, f"job-of-either-{number}", person=person))
        if len({each.replica for each in streams}) == 2:
            break
    assert len({each.replica for each in streams}) == 2
    assert http.delete(f"/v1/people/{person}").json()["deleted"]
    for stream in streams:
        name, event = stream.end()
        assert (name, event["error"]["message"]) == ("error", "The person was erased.")
    assert on_another(http, streams[0].replica, lambda: http.get(f"/v1/people/{person}")).status_code == 404


def test_hanging_up_cancels_through_ray(cluster: Cluster, http: httpx.Client) -> None:
    body = {"prompt": "a cat", **LONG, "stream": True, "person": enroll(http)[0], "progress": True}
    with cluster.http() as own:
        headers = {"x-request-id": "job-of-a-client-that-leaves"}
        with own.stream("POST", "/v1/images/generations", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert http.get("/v1/jobs/job-of-a-client-that-leaves").status_code == 200
    wait_until(lambda: http.get("/v1/jobs/job-of-a-client-that-leaves").status_code == 404)


def test_without_the_board_images_go_on_and_it_comes_back(cluster: Cluster, http: httpx.Client) -> None:
    person, _ = enroll(http)
    cluster.kill(BOARD)
    answer = http.post("/v1/images/generations", json={"prompt": "a cat", "person": person})
    assert answer.status_code == 200, answer.text
    wait_until(lambda: http.delete("/v1/jobs/nothing-at-all").status_code == 404)


def test_no_request_is_lost_when_a_replica_is_killed_under_load(cluster: Cluster, http: httpx.Client) -> None:
    person, _ = enroll(http)
    before = {each.pid for each in cluster.processes(REPLICA)}
    assert len(before) == 2
    statuses: Counter[int] = Counter()
    begun = threading.Semaphore(0)

    def ask(number: int) -> bytes:
        """Send a request with the official client, and again as often as an error asks for it."""
        with httpx.Client(event_hooks={"response": [lambda answer: statuses.update([answer.status_code])]}) as own:
            client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=TOKEN, http_client=own)
            begun.release()
            body = {"person": person, "seed": number, "steps": 300}
            for _ in range(3):
                try:
                    found = client.images.generate(prompt="a cat", extra_body=body)
                    assert found.data is not None and found.data[0].b64_json is not None
                    return base64.b64decode(found.data[0].b64_json)
                except (openai.InternalServerError, openai.APIConnectionError):
                    continue
        raise AssertionError(f"request {number} was lost")

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, number) for number in range(60)]
        for _ in range(20):
            begun.acquire()
        killed = cluster.kill(REPLICA)
        images = [answer.result(PATIENCE) for answer in answers]
    assert len(images) == 60
    assert all(Image.open(BytesIO(image)).size == (SIDE, SIDE) for image in images)
    assert statuses[200] == 60
    assert sum(statuses.values()) > 60  # the requests of the killed replica were sent again
    wait_until(lambda: len({each.pid for each in cluster.processes(REPLICA)} - {killed}) == 2)
    again = http.post("/v1/images/generations", json={"prompt": "a cat", "person": person, "seed": 7, "steps": 300})
    assert base64.b64decode(again.json()["data"][0]["b64_json"]) == images[7]


def test_a_damaged_replica_is_replaced_and_one_that_cannot_start_is_reported(place: Path) -> None:
    write_folder(place / "poisoned", poison="vae_decoder")
    script = Path(__file__).with_name("damaged_replica.py")
    found = subprocess.run(
        [sys.executable, str(script), str(place)], env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["before"] != told["after"]
    assert "non-finite values" in told["not started"]


# Without a cluster: the builder's arguments, and the health check.

ARGS = {"folder": "/engines", "backend": "onnxruntime", "device": "cpu", "token_file": None}
SHARED = {"people": "/people", "templates": "/templates"}


@pytest.fixture(scope="module")
def module() -> Any:
    return pytest.importorskip("infid_export.serve.ray")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"folder": "engines"}, "another place on each node"),
        ({"queue": 0}, "room for a request"),
        ({"queue": "many"}, "queue"),
        ({"limits": {"photo": 3}}, "no limit 'photo'"),
        ({"limits": {"photos": 0}}, "at least 1"),
        ({"steps": 3}, "steps"),
        ({"replicas": 2}, "folder of people"),
        ({"replicas": 2, "people": "/people"}, "folder of templates"),
        ({"replicas": 0}, "replicas"),
        ({"device": "auto", "backend": "auto"}, "choose by itself"),
        ({"backend": "nothing"}, "no backend named"),
    ],
)
def test_arguments_that_cannot_be_used_are_rejected(module: Any, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        module.app({**ARGS, **change})


def test_an_application_has_to_say_who_gets_in(module: Any) -> None:
    with pytest.raises(InputError, match="no token_file"):
        module.app({name: value for name, value in ARGS.items() if name != "token_file"})


@pytest.mark.parametrize(
    ("change", "reserved"),
    [
        ({}, {"num_cpus": 1, "num_gpus": 0}),
        ({"threads": 4}, {"num_cpus": 4, "num_gpus": 0}),
        ({"device": "auto"}, {"num_cpus": 1, "num_gpus": 0}),
        ({"device": "cuda"}, {"num_cpus": 1, "num_gpus": 1}),
        ({"backend": "tensorrt", "device": "auto"}, {"num_cpus": 1, "num_gpus": 1}),
    ],
)
def test_a_replica_reserves_what_its_engines_run_on(
    module: Any, change: dict[str, Any], reserved: dict[str, int]
) -> None:
    assert module.actor_resources(module.Arguments.model_validate({**ARGS, **change})) == reserved


def test_the_deployment_has_room_for_more_requests_than_its_queue(module: Any) -> None:
    bound = module.app({**ARGS, **SHARED, "replicas": 3, "queue": 10, "grace": 7})._bound_deployment
    assert bound.num_replicas == 3
    assert bound.max_ongoing_requests > 3 * 10
    assert bound._deployment_config.graceful_shutdown_timeout_s == 7


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(num_replicas=2, autoscaling_config=None),
        SimpleNamespace(num_replicas=None, autoscaling_config=SimpleNamespace(max_replicas=4)),
    ],
    ids=["replicas", "autoscaling"],
)
def test_a_configuration_cannot_add_replicas_that_share_nothing(
    module: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.serve, "get_replica_context", lambda: SimpleNamespace(_deployment_config=config))
    given = module.Arguments.model_validate(ARGS)
    with pytest.raises(InputError, match="need a folder of people"):
        module._require_shared(given, module._most_replicas())


def test_a_replica_is_healthy_once_its_engines_are_loaded_until_they_are_damaged(module: Any) -> None:
    worker = SimpleNamespace(problem=module.LOADING)
    replica = module.Replica(None)
    replica.app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(worker=worker)))

    async def check() -> None:
        waiting = asyncio.create_task(replica.check_health())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        worker.problem = None
        await waiting
        worker.problem = Problem(503, "stopping", code="stopping")
        await replica.check_health()
        worker.problem, worker.fault = Problem(503, "In the log.", code="damaged"), "An engine is damaged. Build again."
        with pytest.raises(RuntimeError, match=r"An engine is damaged\. Build again\."):
            await replica.check_health()

    asyncio.run(check())
