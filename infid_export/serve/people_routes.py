"""Routes of people and templates."""

from __future__ import annotations

import asyncio
from threading import Event
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from infid_engines.progress import SilentReporter
from infid_export.runtime.denoise import reject_cancelled
from infid_export.runtime.template import TemplateSettings
from infid_export.serve.images import crop_of, png_of
from infid_export.serve.people import PersonRecord
from infid_export.serve.schemas import (
    DeletedBody,
    EnrolledBody,
    FaceFacts,
    ListBody,
    PersonBody,
    PersonFields,
    TemplateBody,
    TemplateRequest,
)
from infid_export.serve.service import Service
from infid_export.serve.shelf import TemplateRecord
from infid_export.serve.uploads import form_schema, read_form


def people_routes(service: Service) -> APIRouter:
    """Return the routes of people."""
    router = APIRouter(prefix="/v1/people", tags=["people"])

    @router.post("", response_model=EnrolledBody, status_code=201, openapi_extra=form_schema(PersonFields))
    async def enroll(request: Request) -> Any:
        """Enroll a person from photos, which are not stored."""
        photos, body = await read_form(request, PersonFields, service.options.limits)
        faces = await service.faces(photos, body.face_index, request)

        def keep(cancel: Event) -> PersonRecord:
            person = service.pipe.encode(faces, name=body.name)
            reject_cancelled(cancel)  # nobody would know the id
            return service.people.add(person)

        record = await service.call(keep, request)
        found = []
        for face in faces:
            assert face.taken is not None
            facts = face.taken.to_json()
            found.append(FaceFacts(found=facts["found"], taken=facts["taken"], faces=facts["faces"],
                                   crop=png_of(crop_of(face))))  # fmt: skip
        return EnrolledBody(**_person(record), faces=found)

    @router.get("", response_model=ListBody)
    def people() -> Any:
        """List the people, the newest first."""
        return ListBody(data=[PersonBody(**_person(record)).model_dump() for record in service.people.list()])

    @router.get("/{id}", response_model=PersonBody)
    def person(id: str) -> Any:
        """Show a person."""
        return PersonBody(**_person(service.people.record(id)))

    @router.delete("/{id}", response_model=DeletedBody)
    async def erase(id: str) -> Any:
        """Erase a person from memory and disk, and stop the images of the person that are being made."""
        await asyncio.to_thread(service.people.erase, id)
        service.forget(id)
        await service.neighbors.erased(id)
        return DeletedBody(id=id, object="person.deleted")

    return router


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


def _person(record: PersonRecord) -> dict[str, Any]:
    return {"id": record.id, "name": record.name, "created_at": record.created}


def _template(record: TemplateRecord) -> TemplateBody:
    made = record.settings
    return TemplateBody(
        id=record.id, prompt=made.prompt, negative_prompt=made.negative_prompt, seed=made.seed,
        size=f"{made.width}x{made.height}", steps=made.steps, guidance=made.guidance, sampler=made.sampler,
        spacing=made.spacing, bytes=record.nbytes, created_at=record.created,
    )  # fmt: skip
