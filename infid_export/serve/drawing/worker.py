"""The one thread that uses the engines: it loads them, then draws rounds until the server stops."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from infid_engines.errors import CancelledError, EngineFolderError, InfidError, InputError, NonFiniteError
from infid_engines.progress import SilentReporter
from infid_export.faces.reader import FaceInputs
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import only_steps, streams_of
from infid_export.serve.drawing.jobs import AllOver, Call, Finished, ImageJob, ImageTask, Partial, Progress
from infid_export.serve.drawing.previews import LatentColors
from infid_export.serve.drawing.queue import JobQueue, Round, jobs_of
from infid_export.serve.http.problems import Problem, problem_of
from infid_export.serve.metrics import Metrics
from infid_export.serve.stores.templates import TemplateShelf

_WARM_STEPS = 2
_RETRY = {"Retry-After": "5"}
LOADING = Problem(503, "The engines are being loaded.", "Try again in a moment.", code="loading", headers=_RETRY)
STOPPING = Problem(503, "The server is stopping.", "Try again; another server will take it.", code="stopping",
                   headers=_RETRY)  # fmt: skip


class Worker(threading.Thread):
    """Draws what is in the queue. `problem` is None while the engines are loaded and intact; clients see it.

    `fault` says what is damaged, with paths, for whoever runs the server.

    Args:
        pipe: the engines.
        queue: what to draw.
        shelf: templates.
        metrics: what is counted.
        log: receives a line about each bug.
    """

    def __init__(
        self, pipe: Pipeline, queue: JobQueue, shelf: TemplateShelf, metrics: Metrics, log: Callable[[str], None]
    ) -> None:
        super().__init__(name="infid-worker", daemon=True)
        self.problem: Problem | None = LOADING
        self.fault = ""
        self._pipe, self._queue, self._shelf, self._metrics, self._log = pipe, queue, shelf, metrics, log
        self._colors = LatentColors()
        self._drawing: Sequence[ImageJob | Call] = ()

    def run(self) -> None:
        """Load the engines, then draw until the queue is closed and empty."""
        try:
            self._warm_up()
            self._set_problem(None if self.problem is LOADING else self.problem)
            self._work()
        except Exception as error:  # damaged engines, or a bug: without this thread, nobody would be answered
            self._damaged(error)

    def _work(self) -> None:
        while (found := self._queue.take()) is not None:
            try:
                if isinstance(found, Call):
                    self._call(found)
                else:
                    self._draw(found)
            except Exception as error:  # of this class itself: the others in the queue must still be drawn
                self._log(_trace(error))
                for job in self._drawing:
                    if isinstance(job, ImageJob):
                        job.fail(problem_of(error))
            self._drawing = ()

    def stop(self) -> None:
        """Refuse new jobs, and end the thread once those that wait are drawn."""
        self._set_problem(STOPPING)
        self._queue.close(STOPPING)

    def abandon(self) -> None:
        """End all jobs, after the current step."""
        self._queue.stop(STOPPING)
        for job in self._drawing:
            if isinstance(job, ImageJob):
                job.stop(STOPPING)
            else:
                job.cancel.set()

    def _warm_up(self) -> None:
        """Load every engine, so that no client waits for it, and learn the colors of latents."""
        pipe = self._pipe
        inputs = pipe.manifest.graph("identity_encoder").inputs
        arrays = {spec.name: np.zeros(_fixed(spec.shape), np.float32) for spec in inputs}
        nobody = pipe.encode(FaceInputs(arrays.get("face_crop"), arrays.get("face_embedding")))
        with suppress(InputError):  # no face is found in it, but the detector is loaded
            pipe.read_faces(np.zeros((64, 64, 3), np.uint8))
        usual = pipe.manifest.defaults
        strengths = usual["style_strength"], usual["identity_strength"]
        steps = only_steps(pipe.manifest) or _WARM_STEPS
        self._images([""], [nobody], [0], strengths, {"steps": steps})
        if self._shelf.available:
            pipe.generate(pipe.template("", seed=0, steps=steps, reporter=SilentReporter()), nobody)

    def _set_problem(self, problem: Problem | None) -> None:
        self.problem = problem
        self._metrics.ready.set(problem is None)

    def _damaged(self, error: Exception) -> None:
        """Stop taking jobs: what the engines give can no longer be relied on."""
        self.fault = str(error) or type(error).__name__
        self._log(f"error: {error}" if isinstance(error, InfidError) else _trace(error))
        problem = Problem(503, "The engines cannot be used.", "The server's log says what to do.", code="damaged")
        self._set_problem(problem)
        self._queue.close(problem)
        self._queue.stop(problem)

    def _call(self, call: Call) -> None:
        self._drawing = [call]
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            call.future.set_result(call.run(call.cancel))
        except Exception as error:
            self._report(error)
            call.future.set_exception(error)

    def _draw(self, found: Round) -> None:
        """Draw a round. If it fails, each job is drawn alone as it asked, so that only the one at fault fails."""
        jobs = self._drawing = jobs_of(found.tasks)
        started = time.monotonic()
        for job in jobs:
            if len(job.waiting) + sum(task.job is job for task in found.tasks) == len(job.seeds):  # its first round
                self._metrics.waiting.observe(started - job.made)
        try:
            self._round(found)
        except CancelledError:
            pass  # nobody waits for it
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._draw(Round(tuple(task for task in found.tasks if task.job is job), job.from_template))
                return
            self._report(error)
            jobs[0].fail(problem_of(error))
        else:
            seconds = time.monotonic() - started
            self._metrics.drawing.observe(seconds)
            self._metrics.batch.observe(len(found.tasks))
            self._queue.took(seconds)

    def _report(self, error: Exception) -> None:
        """Log a bug, and stop if the engines are damaged."""
        if isinstance(error, EngineFolderError) and not isinstance(error, NonFiniteError):
            self._damaged(error)
        elif not isinstance(error, InfidError | Problem):
            self._log(_trace(error))

    def _round(self, found: Round) -> None:
        tasks = found.tasks
        for job in jobs_of(tasks):
            if job.person is None:
                job.person, job.faces = self._pipe.encode(list(job.faces)), ()
        people = [_person(task) for task in tasks]
        cancel = AllOver(jobs_of(tasks))
        first = tasks[0]
        strengths = first.job.style_strength, first.job.identity_strength
        seeds = [task.seed for task in tasks]
        if found.template:
            outcome = "hit" if self._shelf.kept(first.text) else "made"
            template = self._shelf.stream(first.text, cancel=cancel, reporter=SilentReporter())
            images = self._images(template, people, seeds, strengths, {}, cancel, tasks)
        else:
            outcome = "none"
            text = asdict(first.text)
            for name in ("prompt", "seed"):
                del text[name]
            prompts = [task.text.prompt for task in tasks]
            if streams_of(self._pipe.manifest) == "two":
                text["text_seed"] = [task.text.seed for task in tasks]
            images = self._images(prompts, people, seeds, strengths, text, cancel, tasks)
        self._metrics.templates.labels(outcome).inc(len(tasks))
        for task, image in zip(tasks, images, strict=True):
            if not task.job.over:
                task.job.send(Finished(task.index, task.seed, image))

    def _images(
        self, prompt: Any, people: list[Person], seeds: list[int], strengths: tuple[float, float],
        settings: dict[str, Any], cancel: AllOver | None = None, tasks: Sequence[ImageTask] = (),
    ) -> list[Image.Image]:  # fmt: skip
        """Generate one batch, tell the jobs of each step, and learn from the result."""
        last: list[Any] = []

        def on_step(index: int, latents: Any) -> None:
            last[:] = [latents]
            for row, task in enumerate(tasks):
                self._tell(task, index, latents[row])

        images: list[Image.Image] = self._pipe.generate(
            prompt, people, seed=seeds, style_strength=strengths[0], identity_strength=strengths[1],
            previews=on_step, cancel=cancel, reporter=SilentReporter(), **settings,
        )  # fmt: skip
        for row, image in enumerate(images):
            self._colors.learn(last[0][row], image)
        return images

    def _tell(self, task: ImageTask, index: int, latents: Any) -> None:
        """Report a finished step, with a preview if it is time for one."""
        job = task.job
        if job.over:
            return
        job.send(Progress(0, index + 1))
        times = [round((number + 1) * job.steps / (job.partial_images + 1)) for number in range(job.partial_images)]
        if index + 1 in times:
            size = task.text.width, task.text.height
            job.send(Partial(task.index, times.index(index + 1), self._colors.draw(latents, size)))


def _person(task: ImageTask) -> Person:
    person = task.job.person
    assert person is not None
    return person


def _fixed(shape: Sequence[Any]) -> tuple[int, ...]:
    """Return a shape with the least extent where it is a range."""
    return tuple(extent if isinstance(extent, int) else extent[0] for extent in shape)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()
