"""Running a job on the engines of a folder: one at a time, in batches, with progress, and cancelled at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from infid_engines.manifest import Manifest
from infid_engines.progress import Reporter, SilentReporter
from infid_engines.validation import require_callable, require_methods
from infid_export.runtime.denoise import Noise, batches, denoise, reject_cancelled, reject_non_finite
from infid_export.runtime.engine_set import EngineSet
from infid_export.sampling.samplers import SamplerTable

Array = np.ndarray[Any, Any]
Callback = Callable[[int, float, Array], None]
Previews = Callable[[int, Array], None]
Read = Callable[[str], Array]
REPORTER = ("plan", "stage", "note")  # methods of a reporter
_LOOKS_EVERY = 0.05  # seconds between two checks of `cancel` while another generation runs
_READ_SPEED = 5e8  # bytes per second, to estimate the loading time; hashing alone runs at about 1e9


class Watch(NamedTuple):
    """Who follows a generation, and may stop it.

    Args:
        callback: called after each step with its index, the timestep and a copy of the identity latents.
        cancel: stops the generation once it is set.
        reporter: receives the progress.
        previews: called after each step with its index and a copy of the data prediction.
    """

    callback: Callback | None = None
    cancel: threading.Event | None = None
    reporter: Reporter | None = None
    previews: Previews | None = None

    def check(self) -> None:
        """Reject what is none of these.

        Raises:
            InputError: an argument has another type.
        """
        require_callable("The callback", self.callback, "Give a function of index, timestep and latents.")
        require_callable("The function for previews", self.previews, "Give a function of index and latents.")
        require_methods("cancel", self.cancel, ("is_set",), "Give a threading.Event.")
        require_methods("The reporter", self.reporter, REPORTER, "Leave it out.")


class Job(NamedTuple):
    """What a generation runs.

    Args:
        graph: the step graph.
        graphs: all graphs that it needs besides the decoder.
        table: the sampler's.
        streams: noise by stream, of all images.
        fixed: returns the inputs of a batch, given by the rows of its images, that do not change between steps.
        varying: returns further inputs of a step.
    """

    graph: str
    graphs: tuple[str, ...]
    table: SamplerTable
    streams: Mapping[str, Noise]
    fixed: Callable[[list[int]], Mapping[str, Array]]
    varying: Callable[[int], Mapping[str, Array]] = lambda index: {}


class JobRunner:
    """Runs jobs, one at a time.

    Args:
        manifest: of the engine folder.
        engines: of the folder.
        lock: held while a job runs.
    """

    def __init__(self, manifest: Manifest, engines: EngineSet, lock: threading.RLock) -> None:
        self._manifest, self._engines, self._lock = manifest, engines, lock

    def run(self, job: Job, watch: Watch, output_type: str) -> Any:
        """Run all batches of a job, and decode them."""
        count, steps = len(job.streams["identity"].first), len(job.table)
        rows = batches(count, self._manifest.batch)
        decoded = output_type != "latents"
        graphs = (*job.graphs, "vae_decoder") if decoded else job.graphs
        decoding = {"decoding": float(len(rows))} if decoded else {}
        with self.prepared(graphs, {"denoising": float(steps * len(rows)), **decoding}, watch) as report:
            finished = []
            with report.stage("denoising") as stage:
                for number, batch in enumerate(rows):

                    def on_step(index: int, timestep: float, read: Read, number: int = number) -> None:
                        stage.update((number * steps + index + 1) / (steps * len(rows)), f"step {index + 1}")
                        if watch.callback is not None:
                            watch.callback(index, timestep, read("next_identity_latents").copy())
                        if watch.previews is not None:
                            watch.previews(index, read("next_identity_denoised").copy())

                    finished.append(
                        denoise(
                            self._engines[job.graph],
                            job.fixed(batch),
                            job.streams,
                            batch,
                            job.table,
                            job.varying,
                            on_step=on_step,
                            cancel=watch.cancel,
                        )
                    )
            if not decoded:
                return np.concatenate(finished)[:count]
            images = self.decode(finished, report)[:count]
        return images if output_type == "np" else pil_images(images)

    @contextmanager
    def prepared(self, graphs: Sequence[str], work: Mapping[str, float], watch: Watch) -> Iterator[Reporter]:
        """Hold the engines, and load those of some graphs; `work` are the seconds of the stages that follow."""
        report = watch.reporter or SilentReporter()
        with turn(self._lock, watch.cancel):
            report.plan({"loading": self._engines.unread_bytes(graphs) / _READ_SPEED, **work})
            self._engines.prepare(graphs, report, lambda: reject_cancelled(watch.cancel))
            yield report

    def decode(self, latents: Sequence[Array], report: Reporter) -> Array:
        """Return `[n, H, W, 3]` images, decoded from batches of latents."""
        images = []
        with report.stage("decoding") as stage:
            for number, batch in enumerate(latents):
                image = self._engines["vae_decoder"].run({"latents": batch})["image"]
                reject_non_finite(image, "an image")
                images.append(image.transpose(0, 2, 3, 1))
                stage.update((number + 1) / len(latents))
        return np.concatenate(images)


@contextmanager
def turn(lock: threading.RLock, cancel: threading.Event | None) -> Iterator[None]:
    """Hold a lock while the block runs.

    Raises:
        CancelledError: `cancel` was set before this thread got its turn.
    """
    reject_cancelled(cancel)
    while not lock.acquire(timeout=-1 if cancel is None else _LOOKS_EVERY):
        reject_cancelled(cancel)
    try:
        reject_cancelled(cancel)
        yield
    finally:
        lock.release()


def pil_images(images: Array) -> list[Image.Image]:
    """Return `[n, H, W, 3]` images in [0, 1] as PIL images."""
    return [Image.fromarray((image * 255).round().clip(0, 255).astype(np.uint8)) for image in images]
