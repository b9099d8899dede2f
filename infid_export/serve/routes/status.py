"""Routes that say what is served and how it is: health, readiness, metrics, models, settings, and the page."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from infid_export.runtime.denoise import sizes
from infid_export.runtime.requirements import streams_of
from infid_export.sampling import SAMPLERS
from infid_export.serve.http.problems import Problem
from infid_export.serve.http.schemas import ListBody
from infid_export.serve.metrics import CONTENT_TYPE
from infid_export.serve.options import MODEL
from infid_export.serve.service import Service
from infid_export.serve.stores.people import PeopleInFolder

_TEXT = "charset=utf-8"
_KINDS = {
    "html": f"text/html; {_TEXT}", "js": f"text/javascript; {_TEXT}", "css": f"text/css; {_TEXT}", "png": "image/png",
}  # fmt: skip
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def status_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["status"])

    @router.get("/healthz")
    async def alive() -> dict[str, str]:
        """Answer as long as the process lives."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"description": "Loading, damaged or stopping."}})
    async def ready() -> Any:
        """Answer 200 while requests are served."""
        problem = service.worker.problem
        if problem is None:
            return {"status": "ready"}
        return JSONResponse({"status": problem.code, "problem": f"{problem.message} {problem.fix}"}, 503)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Any:
        """Return the metrics in Prometheus' text format."""
        own = await asyncio.to_thread(service.metrics_text)
        return Response(await service.neighbors.metrics(own), media_type=CONTENT_TYPE)

    @router.get("/v1/models", response_model=ListBody)
    async def models() -> Any:
        """List the one model."""
        return ListBody(data=[_model()])

    @router.get("/v1/models/{id}")
    async def model(id: str) -> dict[str, Any]:
        """Show the model."""
        if id != MODEL:
            raise Problem(404, f"There is no model {id[:64]!r}.", f"Use {MODEL}.", code="model_not_found")
        return _model()

    @router.get("/v1/settings")
    def settings() -> dict[str, Any]:
        """Return what the engine folder can do, its defaults, and the server's limits."""
        pipe, options = service.pipe, service.options
        manifest = pipe.manifest
        heights, widths = sizes(manifest)
        return {
            "model": {"id": MODEL, "weights": manifest.model["name"], "precision": manifest.precision},
            "backend": pipe.choice,
            "defaults": dict(manifest.defaults),
            "size": {"height": heights, "width": widths, "default": f"{manifest.width}x{manifest.height}"},
            "samplers": list(SAMPLERS),
            "streams": streams_of(manifest),
            "templates": service.shelf.available,
            "people": {"stored": isinstance(service.people, PeopleInFolder)},
            "slots": manifest.people,
            "drawn_faces_only": manifest.faces.get("detector") == "drawn",
            "limits": {**vars(options.limits), "queue": options.queue},
        }

    @router.get("/", include_in_schema=False)
    def page() -> Response:
        """Return the page."""
        return _file("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> Response:
        """Return a script or style of the page."""
        return _file(name)

    return router


def _model() -> dict[str, Any]:
    return {"id": MODEL, "object": "model", "created": 0, "owned_by": "infid-export"}


def _file(name: str) -> Response:
    """Return a file of the page; only those that are there, by name."""
    found = {each.name: each for each in files("infid_export.serve").joinpath("page").iterdir()}
    kind = _KINDS.get(name.rpartition(".")[2])
    if name not in found or kind is None:
        raise Problem(404, "There is no such page.", "See /openapi.json for what there is.", code="not_found")
    return Response(found[name].read_bytes(), media_type=kind, headers=_PAGE_HEADERS)
