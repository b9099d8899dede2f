"""What every request passes first: its id, who may send it, how large and how slow it may be; and the access log.

This is plain ASGI, around the application: nothing of a body is read or decoded before these checks.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infid_export.serve.http.problems import Problem, problem_of
from infid_export.serve.metrics import Metrics
from infid_export.serve.options import ServeOptions, is_loopback

_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_OPEN = ("/", "/healthz", "/readyz")  # without a token; and the page's files
_JSON_BYTES = 1_000_000
_READ_SECONDS = 60.0  # for a whole body
_UPLOADS = 16  # bodies of the largest size that all requests together may hold in memory
_SEND_SECONDS = 60.0  # for one part of a response, once the connection's buffers are full


class _Stalled(Exception):
    """The client does not read."""


class Guard:
    """Wraps the application.

    Args:
        app: the application.
        options: of the server.
        metrics: counts the requests.
        access_log: receives one line of JSON per request. It has no photo, prompt, name or address.
    """

    def __init__(
        self, app: ASGIApp, options: ServeOptions, metrics: Metrics, access_log: Callable[[str], None]
    ) -> None:
        self._app, self._options, self._metrics, self._access_log = app, options, metrics, access_log
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        scope.setdefault("state", {})["request_id"] = id = given if _ID.fullmatch(given) else secrets.token_hex(12)
        sent, held = {"status": 0, "bytes": 0}, [0]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            sent["bytes"] += len(message.get("body", b""))
            try:
                await asyncio.wait_for(send(message), _SEND_SECONDS)
            except asyncio.TimeoutError as error:
                raise _Stalled from error

        try:
            self._admit(scope, headers)
            await self._app(scope, self._bounded(headers, receive, held), answer)
        except _Stalled:
            pass  # the server closes a connection whose response is incomplete
        except Exception as error:  # answered here, so that a bug is counted and has an id too
            if not sent["status"]:
                await problem_of(error).response()(scope, receive, answer)
            if not isinstance(error, Problem):
                raise  # to the log
        finally:
            self._held -= held[0]
            self._record(scope, sent["status"] or 499, sent["bytes"], time.monotonic() - started)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Let a request in.

        Raises:
            Problem: it has no valid token, or was sent by a page of another origin.
        """
        path, tokens = scope["path"], self._options.tokens
        self._check_origin(scope["method"], headers, bool(tokens))
        if not tokens or path in _OPEN or path.startswith("/page/"):
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(token.encode(), each.encode()) for each in tokens]  # all, in constant time
        if kind.lower() != "bearer" or not any(known):
            raise Problem(
                401, "The token is missing or wrong.", "Send it as `Authorization: Bearer TOKEN`.",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _check_origin(self, method: str, headers: Headers, has_tokens: bool) -> None:
        """Reject what a page of another site makes a browser send.

        Without tokens, the host has to be this machine by name as well, since any site can have its own name resolve to
        the loopback address.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _parts(f"//{host}").hostname or ""
        if not has_tokens and not is_loopback(name):
            raise Problem(403, f"The host {host[:80]!r} is not served.", "Use localhost, or give a --token-file.")
        own = origin is None or _parts(origin).netloc == host
        if not own and origin not in self._options.origins and method not in ("GET", "HEAD"):
            raise Problem(403, f"Pages of {origin[:80] if origin else ''!r} may not call this server.",
                          "Start the server with --cors ORIGIN.")  # fmt: skip

    def _bounded(self, headers: Headers, receive: Receive, held: list[int]) -> Receive:
        """Return `receive`, with limits on the bytes of the body and of all bodies, and on the time that they take.

        Args:
            headers: of the request.
            receive: of the server.
            held: its one entry becomes the bytes of the body.
        """
        multipart = headers.get("content-type", "").lower().startswith("multipart/form-data")
        most = self._options.limits.bytes if multipart else min(self._options.limits.bytes, _JSON_BYTES)
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > most:
            raise _too_large(most)
        complete, deadline = False, time.monotonic() + _READ_SECONDS

        async def bounded() -> Message:
            nonlocal complete
            if complete:  # what follows is the end of the connection, which may take long
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise Problem(
                    408, f"The body took longer than {_READ_SECONDS:.0f} s.", "Send it faster, or send less.",
                    headers={"Connection": "close"},
                ) from None  # fmt: skip
            if message["type"] == "http.disconnect":
                raise Problem(499, "The client has closed the connection.")
            held[0] += len(message.get("body", b""))
            self._held += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if held[0] > most:
                raise _too_large(most)
            if self._held > _UPLOADS * self._options.limits.bytes:
                raise Problem(429, "Too many uploads at once.", "Try again in 1 s.", code="queue_full",
                              headers={"Retry-After": "1", "Connection": "close"})  # fmt: skip
            return message

        return bounded

    def _record(self, scope: Scope, status: int, count: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")  # a template: ids would make endless series
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "request_id": scope["state"]["request_id"],
            "method": method, "route": route, "status": status, "ms": round(seconds * 1000, 1), "bytes": count,
        }  # fmt: skip
        self._access_log(json.dumps(line))


def _parts(url: str) -> SplitResult:
    """Return the parts of a URL; a damaged one, such as `http://[`, has none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _too_large(most: int) -> Problem:
    return Problem(413, f"The body is larger than {most:,} bytes.", "Send smaller photos.", code="too_large",
                   headers={"Connection": "close"})  # fmt: skip
