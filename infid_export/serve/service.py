"""What the routes share: the pipeline with its queue, worker, people and templates, and how requests become jobs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from infid_engines.validation import shown
from infid_export.faces.reader import FaceInputs
from infid_export.runtime.conditioning import fitted_person
from infid_export.runtime.denoise import random_seed
from infid_export.runtime.person import Person, stack
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import streams_of
from infid_export.runtime.template import TemplateSettings
from infid_export.serve.cluster.neighbors import JobState, Neighbors, NoNeighbors
from infid_export.serve.drawing.jobs import Call, ImageJob
from infid_export.serve.drawing.queue import JobQueue
from infid_export.serve.drawing.worker import Worker
from infid_export.serve.http.events import until_hung_up
from infid_export.serve.http.problems import Problem
from infid_export.serve.http.schemas import ImageFields, TemplateRequest
from infid_export.serve.metrics import Metrics
from infid_export.serve.options import MODEL, ServeOptions
from infid_export.serve.stores.people import People, PeopleInFolder, PeopleInMemory
from infid_export.serve.stores.templates import TemplateShelf


class Service:
    """Everything that a server has besides HTTP.

    Args:
        options: how it is set up.
        log: receives lines about bugs.

    Raises:
        InfidError: the engine folder, or a folder for people or templates, cannot be used.
    """

    def __init__(self, options: ServeOptions, log: Callable[[str], None]) -> None:
        self.options = options
        self.pipe = Pipeline.load(options.folder, options.backend, options.device, threads=options.threads)
        self.metrics = Metrics(self.pipe.device)
        self.people: People = (
            PeopleInMemory(options.people_budget)
            if options.people is None
            else PeopleInFolder(options.people, options.people_budget)
        )
        self.shelf = TemplateShelf(self.pipe, options.template_bytes, options.templates)
        self.queue = JobQueue(options.queue, self.pipe.manifest.batch, self.shelf.kept, self.shelf.fits)
        self.worker = Worker(self.pipe, self.queue, self.shelf, self.metrics, log)
        self.jobs: dict[str, ImageJob] = {}  # that wait or are drawn, by request
        self.neighbors: Neighbors = NoNeighbors()
        self._reader = ThreadPoolExecutor(1, "infid-faces")  # the detector sees one photo at a time
        self._reading = threading.BoundedSemaphore(options.queue)  # requests whose photos wait for it

    def close(self) -> None:
        """End all work, and free the engines."""
        self.worker.stop()
        self.worker.abandon()
        if self.worker.is_alive():
            self.worker.join()
        self._reader.shutdown(cancel_futures=True)
        self.pipe.close()

    def require_ready(self) -> None:
        """Reject work while there are no engines for it.

        Raises:
            Problem: the engines are being loaded, are damaged, or the server stops.
        """
        if self.worker.problem is not None:
            raise self.worker.problem

    async def faces(self, photos: Sequence[bytes], face_index: int | None, request: Request) -> list[FaceInputs]:
        """Return the face of each photo, unless the client hangs up first; this does not wait for the engines.

        Raises:
            Problem: too many photos wait.
            InputError: a photo shows no face.
        """
        self.require_ready()
        if not self._reading.acquire(blocking=False):
            raise Problem(429, "Too many photos wait.", "Try again in 1 s.", code="queue_full",
                          headers={"Retry-After": "1"})  # fmt: skip
        try:
            reading = self._reader.submit(self.pipe.read_faces, list(photos), face_index)
            found: list[FaceInputs] = await until_hung_up(request, asyncio.wrap_future(reading), reading.cancel)
            return found
        finally:
            self._reading.release()

    async def call(self, run: Callable[[threading.Event], Any], request: Request, urgent: bool = True) -> Any:
        """Run something on the engines' thread, unless the client hangs up first."""
        self.require_ready()
        call = Call(run, urgent)
        self.queue.put(call)
        return await until_hung_up(request, asyncio.wrap_future(call.future), call.cancel.set)

    @contextmanager
    def submitted(self, job: ImageJob) -> Iterator[ImageJob]:
        """Queue a job, which can be found by its id until the block ends; then nobody waits for it any more.

        Raises:
            Problem: the queue is full, or the id is in use.
        """
        self.require_ready()
        if job.id in self.jobs:
            raise Problem(409, f"The request id {job.id!r} is in use.", "Send another one, or none.")
        self.queue.put(job)
        self.jobs[job.id] = job
        try:
            yield job
        finally:
            self.jobs.pop(job.id, None)
            self.metrics.images.labels("done").inc(job.finished)
            self.metrics.images.labels(job.outcome).inc(len(job.seeds) - job.finished)

    def state_of(self, id: str) -> JobState | None:
        """Return where a request is; None if it does not wait and is not drawn."""
        job = self.jobs.get(id)
        if job is None:
            return None
        progress = job.progress
        return JobState("drawing" if progress.step else "waiting", progress.position, progress.step, job.steps)

    def cancel(self, id: str) -> bool:
        """Cancel a request, which gets an error; return whether there is one that waits or is drawn."""
        job = self.jobs.get(id)
        if job is not None:
            job.stop(Problem(499, "The request was cancelled.", "Send it again.", code="cancelled"))
        return job is not None

    def forget(self, person: str) -> None:
        """Drop an erased person from memory, and stop the images of the person that are being made."""
        self.people.forget(person)
        for job in list(self.jobs.values()):
            if person in job.person_ids:
                job.stop(Problem(404, "The person was erased.", "Enroll the person again.", code="not_found"))

    def metrics_text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        self.metrics.queue.set(len(self.queue))
        self.metrics.people.set(self.people.nbytes)
        self.metrics.template_bytes.set(self.shelf.nbytes)
        return self.metrics.text()

    def people_of(self, ids: Sequence[str]) -> Person:
        """Return one enrolled person, or several stacked for one image.

        Raises:
            Problem: there is no such person.
            InputError: they do not fit the engines.
        """
        found = [self.people.get(id) for id in ids]
        return fitted_person(self.pipe.manifest, found[0] if len(found) == 1 else stack(found))

    def template_settings(self, body: TemplateRequest) -> TemplateSettings:
        """Return the settings of a template.

        Raises:
            Problem: a limit is exceeded.
            InputError: a value does not fit the engines.
        """
        self._check_texts(body.prompt, body.negative_prompt)
        found = self.pipe.template_settings(
            body.prompt, negative_prompt=body.negative_prompt, seed=body.seed, steps=body.steps, guidance=body.guidance,
            sampler=body.sampler, spacing=body.spacing, **body.pixels(),
        )  # fmt: skip
        return self._within_steps(found)

    def image_job(self, id: str, body: ImageFields) -> ImageJob:
        """Return the job of a request; it has no person yet.

        Raises:
            Problem: a limit is exceeded, or fields do not go together.
            InputError: a value does not fit the engines.
        """
        limits, count = self.options.limits, body.n or 1
        if body.model not in (None, MODEL):
            raise Problem(404, f"There is no model {shown(body.model)}.", f"Use {MODEL}, or leave it out.",
                          param="model", code="model_not_found")  # fmt: skip
        if count > limits.images:
            raise Problem(400, f"At most {limits.images} images per request, not {count}.", "Ask for fewer.", param="n")
        if body.output_compression is not None and body.output_format in (None, "png"):
            raise Problem(400, "PNG takes no output_compression.", "Ask for jpeg or webp.", param="output_compression")
        self._check_streams(body)
        texts, seeds = self._template_texts(body, count) if body.template else self._own_texts(body, count)
        defaults = self.pipe.manifest.defaults
        return ImageJob(
            id, None, seeds, texts, _given(body.style_strength, defaults["style_strength"]),
            _given(body.identity_strength, defaults["identity_strength"]), from_template=body.template is not None,
            partial_images=(body.partial_images or 0) if body.stream else 0,
            follows=bool(body.stream and body.progress), loop=asyncio.get_running_loop(),
        )  # fmt: skip

    def _template_texts(self, body: ImageFields, count: int) -> tuple[list[TemplateSettings], list[int]]:
        settings = self.shelf.get(str(body.template)).settings
        decided = ("negative_prompt", "text_seed", "steps", "guidance", "sampler", "spacing")
        given = [name for name in decided if getattr(body, name) is not None]
        given += ["size"] if body.size not in (None, "auto") else []
        given += ["prompt"] if body.prompt not in (None, "", settings.prompt) else []
        if given:
            raise Problem(400, f"The template decides {given[0]}.", "Leave it out, or make another template.",
                          param=given[0])  # fmt: skip
        seed = settings.seed if body.seed is None else body.seed
        return [settings] * count, [seed + number for number in range(count)]

    def _own_texts(self, body: ImageFields, count: int) -> tuple[list[TemplateSettings], list[int]]:
        if body.prompt is None:
            raise Problem(400, "The request has no prompt.", "Give a prompt or a template.", param="prompt")
        self._check_texts(body.prompt, body.negative_prompt)
        seed = random_seed() if body.seed is None else body.seed
        first = self.pipe.template_settings(
            body.prompt, negative_prompt=body.negative_prompt, seed=seed if body.text_seed is None else body.text_seed,
            steps=body.steps, guidance=body.guidance, sampler=body.sampler, spacing=body.spacing, **body.pixels(),
        )  # fmt: skip
        self._within_steps(first)
        return [replace(first, seed=first.seed + i) for i in range(count)], [seed + i for i in range(count)]

    def _check_streams(self, body: ImageFields) -> None:
        """Reject what only a text stream would read."""
        if streams_of(self.pipe.manifest) == "two":
            return
        for name, given in (("text_seed", body.text_seed is not None), ("style_strength", bool(body.style_strength))):
            if given:
                raise Problem(400, f"{name} has no effect: these engines have no text stream.", "Leave it out.",
                              param=name)  # fmt: skip

    def _check_texts(self, *texts: str | None) -> None:
        most = self.options.limits.prompt
        for name, text in zip(("prompt", "negative_prompt"), texts, strict=True):
            if text is not None and len(text) > most:
                raise Problem(400, f"The {name} has {len(text):,} characters, more than {most:,}.",
                              "Shorten it; the text encoders read 77 tokens.", param=name)  # fmt: skip

    def _within_steps(self, settings: TemplateSettings) -> TemplateSettings:
        most = self.options.limits.steps
        if settings.steps > most:
            raise Problem(400, f"At most {most} steps, not {settings.steps}.", "Ask for fewer.", param="steps")
        return settings


def _given(value: float | None, default: Any) -> float:
    return float(default if value is None else value)
