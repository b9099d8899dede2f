"""The application: routes, errors and the guard around them. `create_app` works with any ASGI server."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from infid_engines.errors import InfidError
from infid_export.serve.http.guard import Guard
from infid_export.serve.http.problems import Problem, invalid, problem_of
from infid_export.serve.http.schemas import ErrorBody
from infid_export.serve.options import ServeOptions
from infid_export.serve.routes.images import image_routes
from infid_export.serve.routes.people import people_routes
from infid_export.serve.routes.status import status_routes
from infid_export.serve.routes.templates import template_routes
from infid_export.serve.service import Service

_ERROR = {"description": "A problem, and what to do.", "model": ErrorBody}
_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": _ERROR, "5XX": _ERROR}


def create_app(
    options: ServeOptions, access_log: Callable[[str], None] = print, log: Callable[[str], None] | None = None
) -> FastAPI:
    """Return the application. Its engines are loaded when it starts; `app.state.service` has the parts.

    Args:
        options: how the folder is served.
        access_log: receives one line of JSON per request.
        log: receives lines about bugs; None writes them to stderr.

    Raises:
        InfidError: the engine folder, or a folder for people or templates, cannot be used.
    """
    service = Service(options, log or (lambda line: print(line, file=sys.stderr, flush=True)))  # noqa: T201

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.close()

    app = FastAPI(
        title="infid-export", version=version("infid-export"), lifespan=life, responses=_ERRORS, redoc_url=None,
        docs_url=None, redirect_slashes=False,  # a redirect would name the host that the client claims to have asked
        description="Images of a person from an engine folder: OpenAI's images API, people, templates.",
    )  # fmt: skip
    app.state.service = service
    for routes in (image_routes, people_routes, template_routes, status_routes):
        app.include_router(routes(service))
    _add_error_handlers(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, options=options, metrics=service.metrics, access_log=access_log)
    if options.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(options.origins), allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error OpenAI's form."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(InfidError)
    async def known(_: Request, error: InfidError) -> Response:
        return problem_of(error).response()

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> Response:
        return invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        fix = "See /openapi.json for the routes." if error.status_code in (404, 405) else ""
        return Problem(error.status_code, f"{error.detail}.", fix, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return problem_of(error).response()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document; errors of validation are 400 here, like all bad input."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{}, {"token": []}]
        app.openapi_schema = found
    return app.openapi_schema
