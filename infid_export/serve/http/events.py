"""What a request waits for: the events of its job, as one response or as server-sent events; hanging up cancels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infid_export.serve.drawing.jobs import Event, Failed, Finished, ImageJob
from infid_export.serve.http.problems import Problem, problem_of

_COMMENT_SECONDS = 15.0  # between two signs of life in a stream, so that no proxy closes it
_CANCEL_SECONDS = 1.0  # until work is cancelled again


async def hung_up(request: Request) -> None:
    """Return once the client has closed the connection; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def until_hung_up(request: Request, work: Awaitable[Any], cancel: Callable[[], object]) -> Any:
    """Return the result of some work; if the client closes the connection first, cancel it.

    Raises:
        Problem: the client has closed the connection.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(hung_up(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise Problem(499, "The client has closed the connection.")
    finally:
        watching.cancel()
        if not working.done():
            cancel()
        while not working.done():  # `asyncio.wait_for` swallows some cancellations before Python 3.12
            working.cancel()
            await asyncio.wait({working}, timeout=_CANCEL_SECONDS)


async def events_of(job: ImageJob) -> AsyncGenerator[Event, None]:
    """Yield the events of a job, up to its last."""
    left = len(job.seeds)
    try:
        while left:
            event = await job.events.get()
            yield event
            left -= isinstance(event, Finished)
            if isinstance(event, Failed):
                return
    finally:
        if left:
            job.cancel.set()


class EventStream(Response):
    """Server-sent events.

    Args:
        request: whose client is watched.
        events: pairs of a name and a document.
        cancel: called if the client closes the connection, or the events end early.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, events: AsyncGenerator[tuple[str, dict[str, Any]], None], cancel: Callable[[], None]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._events, self._cancel = request, events, cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""

        async def write(text: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        async def all_events() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with aclosing(self._events) as events:
                    async for name, document in _with_silences(events):
                        await write(f"event: {name}\ndata: {json.dumps(document)}\n\n" if name else ": working\n\n")
            except Exception as error:
                await write(f"event: error\ndata: {json.dumps(problem_of(error).document)}\n\n")
                if not isinstance(error, Problem):
                    raise
            finally:
                self._cancel()
            await write("", more=False)

        with suppress(Problem):  # the client has gone
            await until_hung_up(self._request, all_events(), self._cancel)


async def _with_silences(
    events: AsyncIterator[tuple[str, dict[str, Any]]],
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield events, and an empty one whenever there was none for a while."""
    following = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=_COMMENT_SECONDS)
            if not done:
                yield "", {}
                continue
            try:
                yield following.result()
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(events))
    finally:
        following.cancel()
        await asyncio.wait({following})
