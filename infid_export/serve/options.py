"""How a server is set up: what it serves, what it allows, and whom it lets in."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from infid_engines.errors import InputError
from infid_engines.memory import available_memory
from infid_engines.validation import settle_fields

MODEL = "infid"  # id of the model in OpenAI's API


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. All are checked before anything is decoded or queued.

    Args:
        bytes: of a request's body.
        pixels: of a photo, from its header.
        photos: of one person.
        prompt: characters of a prompt, and of a negative prompt.
        images: in one request.
        steps: of an image.
    """

    bytes: int = 20_000_000
    pixels: int = 40_000_000
    photos: int = 10
    prompt: int = 2000
    images: int = 10
    steps: int = 100

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one of them is not a whole number from 1 up.
        """
        settle_fields(self)
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"The limit of {name} must be at least 1, not {value}.", fix="Give 1 or more.")


@dataclass(frozen=True)
class ServeOptions:
    """How an engine folder is served.

    Args:
        folder: the engine folder.
        backend: as in `Pipeline.load`.
        device: likewise.
        threads: likewise.
        people: folder of person files, which outlive the process and which servers share; None keeps people in memory.
        templates: folder of templates, likewise.
        people_budget: bytes of the people in memory.
        template_budget: bytes of the templates; None is a quarter of the memory that is free at the start.
        queue: requests that may wait; more are asked to try again later.
        tokens: that clients may send; empty lets in everybody.
        origins: other origins whose pages may call the server (CORS).
        limits: of one request.
    """

    folder: Path
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    people: Path | None = None
    templates: Path | None = None
    people_budget: int = 4_000_000_000
    template_budget: int | None = None
    queue: int = 32
    tokens: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            InputError: an option has another type, or is too small.
        """
        settle_fields(self)
        if self.queue < 1:
            raise InputError(f"The queue must have room for a request, not {self.queue}.", fix="Give 1 or more.")

    @property
    def template_bytes(self) -> int:
        """The budget of the templates."""
        return available_memory() // 4 if self.template_budget is None else self.template_budget


def read_tokens(path: Path) -> tuple[str, ...]:
    """Read the tokens that clients may send, one per line.

    Raises:
        InputError: the file cannot be read, has no token, or one that no header can carry.
    """
    again = "Write one token per line, for example with `openssl rand -hex 32`."
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The token file {path} cannot be read ({error}).", fix=again) from error
    if not lines or min(map(len, lines)) < 16:
        raise InputError(f"The token file {path} needs tokens of at least 16 characters.", fix=again)
    return tuple(lines)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
