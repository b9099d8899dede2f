"""Multipart bodies: photos and fields, in memory only.

Photos are never written to a disk, not even to a temporary file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from infid_export.faces.photos import photo_size
from infid_export.serve.http.problems import Problem, invalid
from infid_export.serve.options import Limits

_PHOTOS = ("image", "image[]")  # the official client sends the second name for a list
_FIELDS = 40
_Fields = TypeVar("_Fields", bound=BaseModel)


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 62  # Starlette writes parts of more than 1 MB to a temporary file otherwise


async def read_form(request: Request, kind: type[_Fields], limits: Limits) -> tuple[list[bytes], _Fields]:
    """Read photos and fields.

    Args:
        request: its body is at most as long as the limit.
        kind: of the fields.
        limits: of the server.

    Raises:
        Problem: the body is not multipart, or a photo or field is not allowed.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "The body is not multipart/form-data.", "Send photos as files in the field `image`.")
    body = await request.body()

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = _InMemory(
            request.headers,
            whole(),
            max_files=limits.photos + 1,
            max_fields=_FIELDS,
            max_part_size=limits.prompt * 4 + 64,
        )
        items = (await parser.parse()).multi_items()
    except Exception as error:  # of the parser: besides its own, it has no documented ones
        reason = error.message if isinstance(error, MultiPartException) else "it is damaged"
        raise Problem(400, f"The form cannot be read: {reason}", "Send it as multipart/form-data.") from error
    photos = [await each.read() for name, each in items if name in _PHOTOS and isinstance(each, UploadFile)]
    _check(photos, limits)
    fields: dict[str, Any] = {}
    for name, value in items:
        if name in _PHOTOS and isinstance(value, UploadFile):
            continue
        if isinstance(value, UploadFile):
            raise Problem(400, f"The field {name[:40]!r} does not take a file.", "Send photos as `image`.", param=name)
        if name in fields:
            raise Problem(400, f"The field {name[:40]!r} was sent twice.", "Send it once.", param=name)
        fields[name] = value
    try:
        return photos, kind.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error


def form_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a body for `read_form`."""
    schema = kind.model_json_schema()
    photo = {"type": "string", "format": "binary"}
    schema["properties"] = {
        "image": {"description": "A photo of the person.", **photo},
        "image[]": {"description": "Several photos of the person.", "type": "array", "items": photo},
        **schema["properties"],
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _check(photos: list[bytes], limits: Limits) -> None:
    """Reject photos before they are decoded."""
    if not 1 <= len(photos) <= limits.photos:
        raise Problem(400, f"1 to {limits.photos} photos are needed, not {len(photos)}.",
                      "Send photos of one person as files in `image` or `image[]`.", param="image")  # fmt: skip
    for photo in photos:
        width, height = photo_size(photo)
        if width * height > limits.pixels:
            raise Problem(400, f"A photo has {width} × {height} pixels, more than {limits.pixels:,}.",
                          "Scale it down.", param="image", code="too_large")  # fmt: skip
