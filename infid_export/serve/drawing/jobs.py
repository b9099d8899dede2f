"""Jobs: what requests ask the engines for, and what they get back while it is made."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from PIL import Image

from infid_export.faces.reader import FaceInputs
from infid_export.runtime.person import Person
from infid_export.runtime.template import TemplateSettings
from infid_export.serve.http.problems import Problem


class Look(NamedTuple):
    """What images must have in common to be drawn at once, besides the engines.

    Args:
        settings: of the text stream, without prompt and seed.
        style_strength: s of AdaIN-mean.
        identity_strength: λ.
    """

    settings: TemplateSettings
    style_strength: float
    identity_strength: float


@dataclass(frozen=True, eq=False)
class ImageTask:
    """One image of a job.

    Args:
        job: that it belongs to.
        index: among the job's images.
        text: the text stream that the image reads; images with equal ones can share it.
        seed: of the identity stream.
    """

    job: ImageJob
    index: int
    text: TemplateSettings
    seed: int

    @property
    def shared(self) -> tuple[TemplateSettings, float, float]:
        """What images of one template have in common."""
        return self.text, self.job.style_strength, self.job.identity_strength

    @property
    def look(self) -> Look:
        """What images of one batch have in common if each has its own text stream."""
        return Look(_without_prompt(self.text), self.job.style_strength, self.job.identity_strength)


@dataclass
class Progress:
    """Where a job is.

    Args:
        position: jobs before it in the queue, while it waits.
        step: of the current image, from 1.
    """

    position: int
    step: int


@dataclass
class Partial:
    """A preview of an unfinished image; `number` counts the previews of an image."""

    index: int
    number: int
    image: Image.Image


@dataclass
class Finished:
    """An image."""

    index: int
    seed: int
    image: Image.Image


@dataclass
class Failed:
    """The end of a job that has no result."""

    problem: Problem


Event: TypeAlias = Progress | Partial | Finished | Failed


@dataclass(eq=False)
class ImageJob:
    """A request for images of one person.

    Args:
        id: of the request.
        person: whom the images show; None as long as `faces` are not encoded.
        faces: of the photos that came with the request.
        person_ids: of the enrolled people.
        seeds: of the identity streams, one per image.
        texts: of the images, one each.
        style_strength: s of AdaIN-mean.
        identity_strength: λ.
        from_template: whether the request named a template, which is then made if need be.
        partial_images: number of previews of each image.
        follows: whether the request gets progress events. Waking its thread at every step takes time from the engines.
        loop: where the request is handled.
    """

    id: str
    person: Person | None
    seeds: Sequence[int]
    texts: Sequence[TemplateSettings]
    style_strength: float
    identity_strength: float
    faces: Sequence[FaceInputs] = ()
    person_ids: Sequence[str] = ()
    from_template: bool = False
    partial_images: int = 0
    follows: bool = False
    loop: asyncio.AbstractEventLoop | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    made: float = field(default_factory=time.monotonic)
    started: float | None = None
    progress: Progress = field(default_factory=lambda: Progress(0, 0))
    problem: Problem | None = None
    finished: int = 0
    waiting: list[ImageTask] = field(init=False)

    def __post_init__(self) -> None:
        """Make the tasks."""
        self.waiting = [
            ImageTask(self, index, text, seed)
            for index, (text, seed) in enumerate(zip(self.texts, self.seeds, strict=True))
        ]

    @property
    def steps(self) -> int:
        """Steps of each image."""
        return self.texts[0].steps

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancel.is_set() or self.problem is not None

    @property
    def outcome(self) -> str:
        """What became of the images that are not finished once it is over."""
        if self.problem is None or self.problem.status == 499:
            return "cancelled"
        return "rejected" if self.problem.status < 500 else "failed"

    def stop(self, problem: Problem) -> None:
        """End it without a result; the engines stop after the current step."""
        self.fail(problem)
        self.cancel.set()

    def fail(self, problem: Problem) -> None:
        """Report why there is no result; only the first report counts."""
        if self.problem is None:
            self.problem = problem
            self.send(Failed(problem))

    def send(self, event: Event) -> None:
        """Hand an event to the request, from any thread."""
        if isinstance(event, Progress):
            self.progress = event
            if not self.follows:
                return
        self.finished += isinstance(event, Finished)
        if self.loop is not None:
            with suppress(RuntimeError):  # the server has stopped
                self.loop.call_soon_threadsafe(self.events.put_nowait, event)


@dataclass(eq=False)
class Call:
    """Other work that needs the engines, such as encoding a face; `future` gets its result.

    Args:
        run: the work; it gets `cancel`.
        urgent: whether it goes before all images: for work of milliseconds.
    """

    run: Callable[[threading.Event], Any]
    urgent: bool = True
    future: Future[Any] = field(default_factory=Future)
    cancel: threading.Event = field(default_factory=threading.Event)


class AllOver(threading.Event):
    """Is set once nobody waits for any of some jobs."""

    def __init__(self, jobs: Sequence[ImageJob]) -> None:
        super().__init__()
        self._jobs = jobs

    def is_set(self) -> bool:
        """Return whether all jobs are over."""
        return all(job.over for job in self._jobs)


def _without_prompt(text: TemplateSettings) -> TemplateSettings:
    return replace(text, prompt="", seed=0)
