"""Errors of the server: a status, and a document in OpenAI's form with one more field, `fix`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from infid_engines.errors import BusyError, CancelledError, DiskFullError, InfidError, InputError, NonFiniteError

_STATUSES = ((CancelledError, 499), (BusyError, 503), (InputError, 400), (NonFiniteError, 500))
_IN_THE_LOG = "The server's log says more."


class Problem(HTTPException):
    """What a client gets instead of a result: an HTTPException, which FastAPI passes on while it reads a body.

    Args:
        status: of HTTP.
        message: the problem, in one sentence.
        fix: what to do.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self, status: int, message: str, fix: str = "", *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, dict(headers or {}))
        self.status, self.message, self.fix, self.param, self.code = status, message, fix, param, code

    @property
    def document(self) -> dict[str, Any]:
        """The body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code, "fix": self.fix or None}
        return {"error": error}

    def response(self) -> Response:
        """Return the response."""
        # in ASCII, since a message may quote text that is not valid Unicode
        return Response(json.dumps(self.document), self.status, self.headers, "application/json")


def problem_of(error: BaseException) -> Problem:
    """Return what a client gets for an exception; paths of the server and details of a bug stay in its log."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, DiskFullError):
        return Problem(507, "The server's disk is full.", "Delete something, or try again later.", code="disk_full")
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return Problem(status, error.problem, error.fix, code=_code(error))
    if isinstance(error, InfidError):
        return Problem(500, "The engines cannot be used.", _IN_THE_LOG, code=_code(error))
    return Problem(500, "The server failed on this request.", f"Try again. {_IN_THE_LOG}", code="internal_error")


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return what a client gets for fields that do not validate, by pydantic's list of errors."""
    first = errors[0]
    where = [str(each) for each in first["loc"] if each not in ("body", "query", "path")]
    unknown = first["type"] == "extra_forbidden"
    name = ".".join(where)
    message = f"There is no field {name!r}." if unknown else f"{name or 'The body'}: {first['msg']}."
    return Problem(400, message, "See /openapi.json for the fields.", param=name or None, code="invalid_value")


def _code(error: InfidError) -> str:
    """Return an error's class as a word: `disk_full`."""
    name = type(error).__name__.removesuffix("Error")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
