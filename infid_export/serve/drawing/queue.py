"""The queue: who is drawn next, and together with whom.

The engines draw one *round* at a time, at most one batch of them. The job that has waited longest always is in the next
round. Other waiting images that can be drawn with it fill the batch: those of the same template, whose text stream is
computed once for all of them, or those that differ only in prompt, seed and person; whichever takes less time per
image. A job with images left goes to the end. So a job waits for at most as many rounds as there are jobs before it,
whatever the others ask for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from infid_export.runtime.template import TemplateSettings
from infid_export.serve.drawing.jobs import Call, ImageJob, ImageTask, Progress
from infid_export.serve.http.problems import Problem

# Costs in rows of SDXL's own step, of each image that the engines' batch has room for: of a joint step, of one from a
# template, and of a text stream. Measured on two CPU cores; see docs/performance.md.
_JOINT, _FROM_TEMPLATE, _TEXT_STREAM = 4.4, 2.4, 2.0
_GATHER = 0.03  # seconds in which requests that are sent at once arrive; far less than an image takes


@dataclass(frozen=True)
class Round:
    """Images that are drawn at once.

    Args:
        tasks: the images.
        template: whether they share one text stream.
    """

    tasks: tuple[ImageTask, ...]
    template: bool


class JobQueue:
    """Waiting jobs and calls. For threads.

    Args:
        size: how many may wait.
        batch: images that the engines draw at once.
        kept: whether the template of a text stream is at hand.
        shareable: whether one can be made without being asked for.
    """

    def __init__(
        self, size: int, batch: int, kept: Callable[[TemplateSettings], bool],
        shareable: Callable[[TemplateSettings], bool],
    ) -> None:  # fmt: skip
        self._size, self._batch, self._kept, self._shareable = size, batch, kept, shareable
        self._jobs: deque[ImageJob | Call] = deque()
        self._urgent: deque[Call] = deque()
        self._changed = threading.Condition()
        self._closed: Problem | None = None
        self._round_seconds = 1.0  # mean, for the advice to clients when to try again

    def __len__(self) -> int:
        """Return how many jobs and calls wait."""
        with self._changed:
            return len(self._jobs) + len(self._urgent)

    def put(self, job: ImageJob | Call) -> None:
        """Add a job or a call.

        Raises:
            Problem: the queue is full, or closed.
        """
        with self._changed:
            if self._closed is not None:
                raise self._closed
            lane: deque[Call] | deque[ImageJob | Call] = (
                self._urgent if isinstance(job, Call) and job.urgent else self._jobs
            )
            if len(lane) >= self._size:
                seconds = max(1, round(self._round_seconds * len(lane) + 0.5))
                raise Problem(
                    429, f"The queue is full: {len(lane)} requests wait.", f"Try again in {seconds} s.",
                    code="queue_full", headers={"Retry-After": str(seconds)},
                )  # fmt: skip
            lane.append(job)  # type: ignore[arg-type]
            self._tell_positions()
            self._changed.notify()

    def take(self) -> Round | Call | None:
        """Return the next round or call, after a wait if there is none; None once the queue is closed and empty."""
        with self._changed:
            while True:
                self._forget_finished()
                if self._urgent:
                    return self._urgent.popleft()
                if self._jobs and not self._more_may_come():
                    break
                if self._closed is not None:
                    return None
                self._changed.wait(_GATHER if self._jobs else None)
            first = self._jobs[0]
            found = self._jobs.popleft() if isinstance(first, Call) else self._round(first)
            self._tell_positions()
            assert not isinstance(found, ImageJob)
            return found

    def _more_may_come(self) -> bool:
        """Return whether the engines have room for more, and the job at the head has just arrived.

        Customers who ask at the same time arrive one after another; without this, the first would be drawn alone.
        """
        first = self._jobs[0]
        if self._batch == 1 or self._closed is not None or isinstance(first, Call):
            return False
        return time.monotonic() - first.made < _GATHER and sum(1 for _ in self._tasks()) < self._batch

    def took(self, seconds: float) -> None:
        """Learn how long a round took."""
        self._round_seconds += 0.2 * (seconds - self._round_seconds)

    def close(self, problem: Problem) -> None:
        """Refuse new jobs; those that wait are still drawn."""
        with self._changed:
            self._closed = problem
            self._changed.notify_all()

    def stop(self, problem: Problem) -> None:
        """End all waiting jobs and calls."""
        with self._changed:
            for job in (*self._jobs, *self._urgent):
                if isinstance(job, ImageJob):
                    job.stop(problem)
                else:
                    job.cancel.set()
                    with suppress(Exception):
                        job.future.set_exception(problem)
            self._jobs.clear()
            self._urgent.clear()
            self._changed.notify_all()

    def _round(self, first: ImageJob) -> Round:
        """Take the images of the next round out of the queue; `first` is the job at its head."""
        head = first.waiting[0]
        same = [task for task in self._tasks() if task.shared == head.shared]
        joint = [task for task in self._tasks() if task.look == head.look][: self._batch]
        template = first.from_template or self._pays(head.text, len(same), len(joint))
        chosen = same[: self._batch] if template else joint
        jobs = jobs_of(chosen)
        for task in chosen:
            task.job.waiting.remove(task)
        for job in jobs:
            job.started = job.started or time.monotonic()
            self._jobs.remove(job)
        self._jobs.extend(job for job in jobs if job.waiting)
        return Round(tuple(chosen), template)

    def _pays(self, text: TemplateSettings, same: int, joint: int) -> bool:
        """Return whether images cost less from a template, which may have to be made, than jointly.

        Args:
            text: the text stream.
            same: images that would share it, also in later rounds.
            joint: images that would be drawn in one round without it. Engines take as long for a part of a batch.
        """
        shared = _FROM_TEMPLATE * self._batch / min(same, self._batch)
        if shared >= _JOINT * self._batch / joint:
            return False
        if self._kept(text):
            return True
        made = shared + _TEXT_STREAM / same
        # a text stream that one image reads would only push others out of the cache
        return same > 1 and made < _JOINT * self._batch / joint and self._shareable(text)

    def _tasks(self) -> Iterator[ImageTask]:
        """Yield all waiting images, the longest waiting job's first."""
        for job in self._jobs:
            if isinstance(job, ImageJob):
                yield from job.waiting

    def _forget_finished(self) -> None:
        """Drop jobs and calls that nobody waits for."""
        over = [job for job in self._jobs if (job.over if isinstance(job, ImageJob) else job.cancel.is_set())]
        for job in over:
            self._jobs.remove(job)

    def _tell_positions(self) -> None:
        for position, job in enumerate(self._jobs):
            if isinstance(job, ImageJob) and job.started is None:
                job.send(Progress(position, 0))


def jobs_of(tasks: Sequence[ImageTask]) -> list[ImageJob]:
    """Return the jobs of some images, each once."""
    return list(dict.fromkeys(task.job for task in tasks))
