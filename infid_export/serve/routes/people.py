"""Routes of people."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from threading import Event
from typing import Any

from fastapi import APIRouter, Request

from infid_export.faces.reader import FaceInputs
from infid_export.runtime.denoise import reject_cancelled
from infid_export.serve.http.schemas import (
    DeletedBody,
    EnrolledBody,
    FaceFacts,
    ListBody,
    PersonBody,
    PersonFields,
)
from infid_export.serve.http.uploads import form_schema, read_form
from infid_export.serve.routes.images import crop_of, png_of
from infid_export.serve.service import Service
from infid_export.serve.stores.people import PersonRecord


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
        return EnrolledBody(**_person(record), faces=await asyncio.to_thread(_found, faces))

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


def _found(faces: Sequence[FaceInputs]) -> list[FaceFacts]:
    """Return the faces that were found; engines that read whole images search none."""
    return [_facts(face) for face in faces if face.taken is not None]


def _facts(face: FaceInputs) -> FaceFacts:
    assert face.taken is not None
    facts = face.taken.to_json()
    return FaceFacts(found=facts["found"], taken=facts["taken"], faces=facts["faces"], crop=png_of(crop_of(face)))


def _person(record: PersonRecord) -> dict[str, Any]:
    return {"id": record.id, "name": record.name, "created_at": record.created}
