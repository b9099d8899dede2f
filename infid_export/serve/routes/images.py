"""Routes that make images: OpenAI's `/v1/images/generations` and `/v1/images/edits`, and the jobs behind them."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image

from infid_export.faces.reader import FaceInputs
from infid_export.serve.drawing.jobs import Failed, Finished, ImageJob, Partial, Progress
from infid_export.serve.http.events import EventStream, events_of, until_hung_up
from infid_export.serve.http.problems import Problem
from infid_export.serve.http.schemas import (
    CancelledBody,
    EditRequest,
    GenerationRequest,
    ImageFields,
    ImagesResponse,
    JobBody,
)
from infid_export.serve.http.uploads import form_schema, read_form
from infid_export.serve.service import Service

_JPEG_QUALITY = 95
_STREAMED = {"description": "The images, or with `stream` their events.", "content": {"text/event-stream": {}}}


def image_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["images"])

    @router.post("/v1/images/generations", response_model=ImagesResponse, responses={200: _STREAMED})
    async def generations(request: Request, body: GenerationRequest) -> Any:
        """Generate images of enrolled people."""
        if (body.person is None) == (body.people is None):
            raise Problem(400, "The request needs either person or people.", "POST photos to /v1/people first.",
                          param="person")  # fmt: skip
        job = service.image_job(request.state.request_id, body)
        job.person_ids = [body.person] if body.person is not None else list(body.people or ())
        job.person = await asyncio.to_thread(service.people_of, job.person_ids)
        return await _Answer(service, request, body, job, "image_generation").response()

    @router.post(
        "/v1/images/edits", response_model=ImagesResponse, responses={200: _STREAMED},
        openapi_extra=form_schema(EditRequest),
    )  # fmt: skip
    async def edits(request: Request) -> Any:
        """Generate images of the person on the uploaded photos."""
        photos, body = await read_form(request, EditRequest, service.options.limits)
        job = service.image_job(request.state.request_id, body)
        job.faces = await service.faces(photos, body.face_index, request)
        return await _Answer(service, request, body, job, "image_edit").response()

    @router.get("/v1/jobs/{id}", response_model=JobBody)
    async def job(id: str) -> Any:
        """Show where a request is; its id is the header `x-request-id`."""
        found = service.state_of(id) or await service.neighbors.find(id)
        if found is None:
            raise _no_job(id)
        return JobBody(id=id, **found._asdict())

    @router.delete("/v1/jobs/{id}", response_model=CancelledBody)
    async def cancel(id: str) -> Any:
        """Cancel a request; it gets an error."""
        if not service.cancel(id) and not await service.neighbors.cancel(id):
            raise _no_job(id)
        return CancelledBody(id=id)

    return router


def png_of(image: Image.Image) -> str:
    """Return an image as PNG in base64."""
    return _encoded(image, "png", None)


def crop_of(face: FaceInputs) -> Image.Image:
    """Return an aligned face as an image."""
    assert face.face_crop is not None
    pixels = face.face_crop[0].transpose(1, 2, 0) * 255
    return Image.fromarray(pixels.round().clip(0, 255).astype("uint8"))


class _Answer:
    """What a request for images gets."""

    def __init__(self, service: Service, request: Request, body: ImageFields, job: ImageJob, prefix: str) -> None:
        self._service, self._request, self._body, self._job, self._prefix = service, request, body, job, prefix
        self._format = body.output_format or "png"
        first = job.texts[0]
        self._facts = {
            "size": f"{first.width}x{first.height}", "output_format": self._format, "background": "opaque",
            "quality": "auto",
        }  # fmt: skip

    async def response(self) -> Any:
        """Queue the job, and return the response."""
        with ExitStack() as stack:
            stack.enter_context(self._service.submitted(self._job))
            if not self._body.stream:
                return await until_hung_up(self._request, self._images(), self._job.cancel.set)
            leaving = stack.pop_all()

        def over() -> None:
            self._job.cancel.set()
            leaving.close()

        return EventStream(self._request, self._events(), over)

    async def _images(self) -> ImagesResponse:
        made: dict[int, dict[str, Any]] = {}
        async for event in events_of(self._job):
            if isinstance(event, Failed):
                raise event.problem
            if isinstance(event, Finished):
                made[event.index] = {"b64_json": await self._encode(event.image), "seed": event.seed}
        return ImagesResponse.model_validate({
            "created": int(time.time()), "data": [made[index] for index in sorted(made)],
            "usage": self._usage(len(made)), "notes": self._notes(), **self._facts,
        })  # fmt: skip

    async def _events(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        async for event in events_of(self._job):
            if isinstance(event, Failed):
                raise event.problem
            if isinstance(event, Progress):
                yield self._event("infid.progress", state="drawing" if event.step else "waiting",
                                  position=event.position, step=event.step, steps=self._job.steps)  # fmt: skip
                continue
            image = await self._encode(event.image)
            if isinstance(event, Partial):
                yield self._event(f"{self._prefix}.partial_image", b64_json=image, partial_image_index=event.number,
                                  index=event.index, **self._common())  # fmt: skip
            else:
                yield self._event(f"{self._prefix}.completed", b64_json=image, seed=event.seed, index=event.index,
                                  usage=self._usage(1), notes=self._notes(), **self._common())  # fmt: skip

    def _event(self, kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        return kind, {"type": kind, **fields}

    def _common(self) -> dict[str, Any]:
        return {"created_at": int(time.time()), **self._facts}

    def _notes(self) -> list[str]:
        first, tokenizer = self._job.texts[0], self._service.pipe.tokenizer
        return [note for text in (first.prompt, first.negative_prompt or "") for note in tokenizer.notes(text)]

    def _usage(self, images: int) -> dict[str, Any]:
        pipe, first = self._service.pipe, self._job.texts[0]
        manifest = pipe.manifest
        text, identity = pipe.tokenizer.count(first.prompt), manifest.people * manifest.identity_tokens
        latents = images * first.width * first.height // (2 * manifest.vae_scale_factor) ** 2
        return {
            "input_tokens": text + identity, "output_tokens": latents, "total_tokens": text + identity + latents,
            "input_tokens_details": {"text_tokens": text, "image_tokens": identity},
        }  # fmt: skip

    async def _encode(self, image: Image.Image) -> str:
        return await asyncio.to_thread(_encoded, image, self._format, self._body.output_compression)


def _encoded(image: Image.Image, kind: str, quality: int | None) -> str:
    settings: dict[str, Any] = {}
    if kind == "jpeg":
        settings = {"quality": _JPEG_QUALITY if quality is None else quality}
    elif kind == "webp":
        settings = {"lossless": True} if quality is None else {"quality": quality}
    content = io.BytesIO()
    image.save(content, format=kind.upper(), **settings)
    return base64.b64encode(content.getvalue()).decode()


def _no_job(id: str) -> Problem:
    return Problem(404, f"There is no request {id[:64]!r} that waits or is drawn.", "It may be finished.",
                   code="not_found")  # fmt: skip
