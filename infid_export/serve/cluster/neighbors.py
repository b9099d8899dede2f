"""Other servers that answer the same clients: what one has to know of the jobs and people of the others."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol


class JobState(NamedTuple):
    """Where a request is.

    Args:
        state: whether it waits, or its images are drawn.
        position: jobs before it in the queue.
        step: of the current image, from 1.
        steps: of each image.
    """

    state: Literal["waiting", "drawing"]
    position: int
    step: int
    steps: int


class Neighbors(Protocol):
    """The other servers. A client's next request may reach any of them."""

    async def find(self, id: str) -> JobState | None:
        """Return where a request is that one of them works on; None if none does."""

    async def cancel(self, id: str) -> bool:
        """Cancel a request that one of them works on; return whether one did."""

    async def erased(self, id: str) -> None:
        """Say that a person was erased, so that all of them stop the person's images and forget the person."""

    async def metrics(self, own: bytes) -> bytes:
        """Return this server's metrics together with those of the others."""


class NoNeighbors:
    """A server that is alone."""

    async def find(self, id: str) -> JobState | None:
        """Return None."""
        return None

    async def cancel(self, id: str) -> bool:
        """Return False."""
        return False

    async def erased(self, id: str) -> None:
        """Do nothing."""

    async def metrics(self, own: bytes) -> bytes:
        """Return this server's."""
        return own
