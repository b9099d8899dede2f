"""Runs the application on this machine: the socket, signals, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from infid_engines.errors import InputError
from infid_export.serve.http.connections import ImpatientConnection
from infid_export.serve.options import is_loopback
from infid_export.serve.service import Service

_CONNECTIONS = 1000  # at once; more get 503
_FLUSH_SECONDS = 5.0  # for responses that are still being sent when the grace is over


def listen(host: str, port: int, has_tokens: bool) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: a name or address of this machine.
        port: 0 chooses a free one.
        has_tokens: whether clients need a token.

    Raises:
        InputError: the port is in use or not allowed, there is no such host, or it can be reached from other machines
            and there is no token.
    """
    if not has_tokens and not is_loopback(host):
        raise InputError(
            f"On {host}, other machines can reach the server, so it needs a token.",
            fix="openssl rand -hex 32 > token; then add --token-file token",
        )
    if not 0 <= port <= 65535:
        raise InputError(f"There is no port {port}.", fix="Give one from 1 to 65535, or 0 for a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(
            f"There is no host {host!r} ({error.strerror}).", fix="Give an address with --host."
        ) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        used = error.errno == errno.EADDRINUSE
        problem = f"Port {port} on {host} is in use" if used else f"Port {port} on {host} cannot be used"
        raise InputError(f"{problem} ({error.strerror}).", fix="Choose another with --port.") from error
    return found


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: FastAPI, grace: float, note: Callable[[str], None]) -> uvicorn.Server:
    """Return a server, to be run with `run(sockets=[...])` until SIGTERM or Ctrl-C, or until its `should_exit` is set.

    Then no new work is taken. What waits is drawn for `grace` seconds; whoever still waits then gets an error with the
    advice to try again. A second signal ends the wait.

    Args:
        app: from `create_app`.
        grace: seconds.
        note: receives a sentence when the server stops.
    """
    config = uvicorn.Config(
        app, http=ImpatientConnection, ws="none", log_level="error", access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=15, limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=round(grace + _FLUSH_SECONDS),
    )  # fmt: skip
    return _Server(config, app.state.service, grace, note)


class _Server(uvicorn.Server):
    def __init__(self, config: Any, service: Service, grace: float, note: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service, self._grace, self._note = service, grace, note

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; unlike uvicorn, do not die of the signal afterwards."""
        if self.should_exit:
            self.force_exit = sig == signal.SIGINT
            self._service.worker.abandon()
            return
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop within the grace."""
        self._note(f"stopping; requests that wait are finished for {self._grace:g} s")
        self._service.worker.stop()
        ending = asyncio.get_running_loop().call_later(self._grace, self._service.worker.abandon)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
