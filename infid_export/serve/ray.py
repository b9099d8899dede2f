"""The server on a Ray cluster: `app` builds a Ray Serve application with one replica of the server per GPU.

Each replica is a process with the application of `app.create_app`, its engines and its queue. People and templates are
in folders that all nodes mount. A second deployment, the job board, is how a request to cancel a job, or to erase a
person, has its effect in whichever replica works for it.

`serve run` and `serve deploy` find it as `infid_export.serve.ray:app`.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infid_engines.errors import InputError
from infid_engines.registry import PARITY_BACKEND, get_backend
from infid_export.serve.app import create_app
from infid_export.serve.cluster.board import Board, BoardNeighbors
from infid_export.serve.drawing.worker import LOADING
from infid_export.serve.options import Limits, ServeOptions, read_tokens

NAME = "infid-export"  # of the deployment whose replicas draw
BOARD = "job-board"
_SHORT_REQUESTS = 64  # at once in a replica, beside those that its queue has room for
_HEALTH_SECONDS = 2.0  # Ray replaces a replica after three failed checks; a damaged one rejects everything until then
_STARTS = 3  # attempts to start a replica before Ray reports the deployment as failed
_QUIET = {"enable_access_log": False}  # the application has an access log of its own, without ids


class Arguments(BaseModel):
    """The `args` of the application in a Serve configuration: the fields of `ServeOptions`, and those below.

    Args:
        token_file: on every node, tokens that clients may send; null lets in everybody who can reach the port.
        replicas: copies of the server, if the configuration does not say it under `deployments`.
        grace: seconds in which a replica that is stopped finishes its requests.
    """

    model_config = ConfigDict(extra="forbid")

    folder: Path
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    people: Path | None = None
    templates: Path | None = None
    people_budget: int = ServeOptions.people_budget
    template_budget: int | None = None
    queue: int = ServeOptions.queue
    token_file: Path | None
    origins: list[str] = Field(default_factory=list)
    limits: dict[str, int] = Field(default_factory=dict)
    replicas: int = Field(1, ge=1)
    grace: float = Field(30.0, ge=0, allow_inf_nan=False)

    def options(self) -> ServeOptions:
        """Return the options of a replica, without its tokens."""
        unknown = set(self.limits) - set(vars(Limits()))
        if unknown:
            raise InputError(f"There is no limit {min(unknown)!r}.", fix=f"Use {', '.join(vars(Limits()))}.")
        return ServeOptions(
            self.folder, self.backend, self.device, self.threads, self.people, self.templates, self.people_budget,
            self.template_budget, self.queue, (), tuple(self.origins), Limits(**self.limits),
        )  # fmt: skip


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application of a cluster.

    Args:
        args: the fields of `Arguments`. Paths are absolute, and the same on every node.

    Raises:
        InputError: a field is missing, unknown or wrong, or replicas would not share people and templates.
    """
    given = _checked(args)
    options, resources = given.options(), actor_resources(given)
    token_file = given.token_file

    def build() -> FastAPI:
        """Return the application of a replica; its locks and its thread cannot be sent from another process."""
        _require_shared(given, _most_replicas())
        tokens = () if token_file is None else read_tokens(token_file)
        return _replica_app(replace(options, tokens=tokens))

    replica = serve.deployment(
        name=NAME, num_replicas=given.replicas, ray_actor_options=resources,
        # A full queue has to be answered with 429 by the replica, and to cancel must be possible then. So Ray lets
        # through what can wait for the engines, for the detector and as a short request, and never holds back.
        max_ongoing_requests=3 * given.queue + _SHORT_REQUESTS,
        max_queued_requests=given.queue,  # in a proxy, while there is no replica for them
        health_check_period_s=_HEALTH_SECONDS, graceful_shutdown_timeout_s=given.grace,
        graceful_shutdown_wait_loop_s=0.5, max_constructor_retry_count=_STARTS, logging_config=_QUIET,
    )  # fmt: skip
    board = serve.deployment(
        name=BOARD, num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000,
        health_check_period_s=_HEALTH_SECONDS, graceful_shutdown_timeout_s=1.0, graceful_shutdown_wait_loop_s=0.1,
        logging_config=_QUIET,
    )  # fmt: skip
    return replica(serve.ingress(build)(Replica)).bind(board(Board).bind())


class Replica:
    """One copy of the server.

    Args:
        board: the handle of the job board, which starts with the application.
    """

    app: FastAPI  # from `build`, once Ray has called it

    def __init__(self, board: Any) -> None:
        self._board = board

    async def check_health(self) -> None:
        """Tell Ray whether this replica is to be kept. The first check waits for the engines.

        Raises:
            RuntimeError: the engines are damaged.
        """
        worker = self.app.state.service.worker
        while worker.problem is LOADING:
            await asyncio.sleep(0.1)
        if worker.problem is not None and worker.problem.code == "damaged":
            raise RuntimeError(worker.fault)


def actor_resources(given: Arguments) -> dict[str, float]:
    """Return what a replica reserves: a GPU, or as many cores as it has threads.

    Raises:
        InputError: it cannot be known from the arguments what the engines run on.
    """
    backend = None if given.backend == "auto" else get_backend(given.backend)
    if given.device.startswith(("cuda", "sm_")) or (backend is not None and backend.device == "cuda"):
        return {"num_cpus": 1, "num_gpus": 1}
    if given.device == "auto" and given.backend != PARITY_BACKEND:  # its `auto` is the CPU
        raise InputError(
            f"With backend {given.backend} and device auto, each node would choose by itself what the engines run on.",
            fix="Give a backend, and the device cuda or cpu.",
        )
    return {"num_cpus": given.threads or 1, "num_gpus": 0}


def _checked(args: dict[str, Any]) -> Arguments:
    try:
        given = Arguments.model_validate(args)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "missing" and name == "token_file":
            raise InputError(
                "The arguments have no token_file, and other machines can reach a cluster.",
                fix="Give a file of tokens that every node has, or null if something else decides who gets in.",
            ) from error
        raise InputError(f"The argument {name}: {first['msg']}.",
                         fix=f"The arguments are {', '.join(Arguments.model_fields)}.") from error  # fmt: skip
    for name in ("folder", "people", "templates", "token_file"):
        path = getattr(given, name)
        if path is not None and not path.is_absolute():
            raise InputError(f"{name} is {path}, which is another place on each node.", fix="Give an absolute path.")
    _require_shared(given, given.replicas)
    return given


def _require_shared(given: Arguments, replicas: int) -> None:
    """Reject replicas that would each know only the people and templates that were made there."""
    for name in ("people", "templates"):
        if replicas > 1 and getattr(given, name) is None:
            raise InputError(
                f"{replicas} replicas need a folder of {name} that all of them reach; there is none.",
                fix=f"Give {name}, a folder on a file system that every node mounts, or run one replica.",
            )


def _most_replicas() -> int:
    """Return how many replicas this replica's deployment may have; a configuration can override the arguments."""
    config = getattr(serve.get_replica_context(), "_deployment_config", None)
    scaling = getattr(config, "autoscaling_config", None)
    return int(getattr(scaling, "max_replicas", None) or getattr(config, "num_replicas", None) or 1)


def _replica_app(options: ServeOptions) -> FastAPI:
    """Return the application, in touch with the other replicas."""
    context = serve.get_replica_context()
    warnings.simplefilter("once", UserWarning)  # of the drawn detector, at each photo
    built = create_app(options, access_log=_print_line)
    handle = serve.get_deployment_handle(BOARD, context.app_name)

    async def call(method: str, *values: Any) -> Any:
        return await getattr(handle, method).remote(*values)

    neighbors = BoardNeighbors(built.state.service, context.replica_tag, call, _print_problem)
    built.state.service.neighbors = neighbors
    inner = built.router.lifespan_context

    @asynccontextmanager
    async def life(running: FastAPI) -> AsyncIterator[Any]:
        async with inner(running) as state:
            exchanging = asyncio.create_task(neighbors.run())
            yield state
            exchanging.cancel()
            with suppress(asyncio.CancelledError):
                await exchanging

    built.router.lifespan_context = life
    built.add_middleware(_ReplicaHeaders, name=context.replica_tag)
    return built


class _ReplicaHeaders:
    """Adds `x-infid-replica`, and leaves `x-request-id` to Ray's proxy, which would add it a second time."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app, self._name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-infid-replica"] = self._name
                if headers.get("x-request-id") == Headers(scope=scope).get("x-request-id"):
                    del headers["x-request-id"]
            await send(message)

        await self._app(scope, receive, answer if scope["type"] == "http" else send)


def _print_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _print_problem(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
