"""HTTP connections that cannot be held open by clients that send or read too slowly."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOKS_EVERY = 15.0  # seconds; a request's header must be complete within two looks
_LEAST_RATE = 1000  # bytes per second that a client must read, while there is something to read


class ImpatientConnection(H11Protocol):
    """Closes a connection whose request header does not arrive, or whose client reads less than 1 kB a second."""

    _watched: asyncio.Transport
    _looking: asyncio.TimerHandle
    _unread = 0
    _idle_after: Any = None  # the last request, if there was no other at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to look at it from time to time."""
        super().connection_made(transport)
        self._watched = transport
        self._looking = self.loop.call_later(LOOKS_EVERY, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        super().connection_lost(exc)
        self._looking.cancel()

    def _look(self) -> None:
        unread = self._watched.get_write_buffer_size()
        unread_before, self._unread = self._unread, unread
        stalled = unread_before > 0 and unread > max(0.0, unread_before - _LEAST_RATE * LOOKS_EVERY)
        idle = self.conn.their_state is h11.IDLE
        silent = idle and unread == 0 and self._idle_after == (id(self.scope),)
        self._idle_after = (id(self.scope),) if idle else None
        if stalled or silent:
            self._watched.abort()
        else:
            self._looking = self.loop.call_later(LOOKS_EVERY, self._look)
