"""Routes of templates."""

from __future__ import annotations

from threading import Event
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from infid_engines.progress import SilentReporter
from infid_export.runtime.template import TemplateSettings
from infid_export.serve.http.schemas import DeletedBody, ListBody, TemplateBody, TemplateRequest
from infid_export.serve.service import Service
from infid_export.serve.stores.templates import TemplateRecord


def template_routes(service: Service) -> APIRouter:
    """Return the routes of templates."""
    router = APIRouter(prefix="/v1/templates", tags=["templates"])

    @router.post("", response_model=TemplateBody, status_code=201)
    async def make(request: Request, body: TemplateRequest) -> Any:
        """Run a prompt's text stream once, for images of any number of people."""
        settings: TemplateSettings = service.template_settings(body)

        def run(cancel: Event) -> TemplateRecord:
            return service.shelf.add(settings, cancel=cancel, reporter=SilentReporter())

        return _template(await service.call(run, request, urgent=False))

    @router.get("", response_model=ListBody)
    def templates() -> Any:
        """List the templates, the newest first."""
        return ListBody(data=[_template(record).model_dump() for record in service.shelf.list()])

    @router.get("/{id}", response_model=TemplateBody)
    def template(id: str) -> Any:
        """Show a template."""
        return _template(service.shelf.get(id))

    @router.get("/{id}/preview", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    def preview(id: str) -> Any:
        """Return the template's own image: nobody is in it."""
        return Response(service.shelf.get(id).preview, media_type="image/png")

    @router.delete("/{id}", response_model=DeletedBody)
    def delete(id: str) -> Any:
        """Delete a template; images that are being made from it are finished."""
        service.shelf.delete(id)
        return DeletedBody(id=id, object="template.deleted")

    return router


def _template(record: TemplateRecord) -> TemplateBody:
    made = record.settings
    return TemplateBody(
        id=record.id, prompt=made.prompt, negative_prompt=made.negative_prompt, seed=made.seed,
        size=f"{made.width}x{made.height}", steps=made.steps, guidance=made.guidance, sampler=made.sampler,
        spacing=made.spacing, bytes=record.nbytes, created_at=record.created,
    )  # fmt: skip
