"""Measures an engine folder: each graph, whole images, and what the host adds to a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infid_engines.memory import peak_memory, reset_peak_memory
from infid_engines.meters import meter
from infid_engines.progress import Reporter, SilentReporter, Stage
from infid_export.bench import PROMPT, SEED
from infid_export.bench.first_image import first_image_seconds
from infid_export.bench.floor import floors
from infid_export.bench.images import IDENTITY, TEXT, image_calls
from infid_export.bench.machine import library_versions, machine_facts
from infid_export.bench.recording import RecordingEngines, recording_pipeline
from infid_export.bench.stand_in import stand_in
from infid_export.bench.sweep import Sweep, folder_facts
from infid_export.bench.timing import Times, take_turns
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import step_name

_JOINT = "denoise_step"
_BURST = 4


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how often.

    Args:
        folder: the engine folder.
        backend: as in `Pipeline.load`.
        device: likewise.
        threads: likewise.
        rounds: how often each graph is timed.
        image_rounds: how often each kind of image is timed.
        steps: steps per image; None is the folder's.
        beside: further engine folders, to see how time grows with what they differ in.
    """

    folder: Path
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    rounds: int = 15
    image_rounds: int = 3
    steps: int | None = None
    beside: tuple[Path, ...] = ()


def bench(
    options: BenchOptions, reporter: Reporter, others: Mapping[str, Callable[[], object]] | None = None
) -> dict[str, Any]:
    """Measure, and return the document; `docs/performance.md` explains its keys.

    Args:
        options: what is measured.
        reporter: receives the progress.
        others: calls of other software that each make an image, by name; they take turns with the folder's images.

    Raises:
        InputError: an option does not fit.
        EngineFolderError: the folder is missing or damaged.
        BackendUnavailableError: the backend cannot run here.
    """
    reset_peak_memory()
    pipe, engines = recording_pipeline(options.folder, options.backend, options.device, options.threads)
    with pipe, ExitStack() as stack:
        reporter.note(pipe.choice)
        steps = pipe.manifest.defaults["steps"] if options.steps is None else options.steps
        person = stand_in(pipe)
        calls = image_calls(pipe, steps, person)
        beside = [
            stack.enter_context(Pipeline.load(each, pipe.backend, options.device, threads=options.threads))
            for each in options.beside
        ]
        sweep = Sweep(pipe, steps, person, beside)
        started = time.perf_counter()
        for call in calls.values():
            call()  # loads the engines, and records their inputs
        seconds = time.perf_counter() - started
        images = {**calls, **(others or {}), **sweep.calls}
        reporter.plan(
            {
                "graphs": (options.rounds + 1) * _BURST * seconds / steps,
                "images": (options.image_rounds + 1) * seconds * len(images) / len(calls),
                "host": seconds,
                "first image": 2 * seconds,
                "floor": 5.0,
            }
        )
        with reporter.stage("graphs") as stage:
            graphs = take_turns(
                {name: engines.call(name) for name in engines.inputs}, options.rounds, stage.update, _BURST
            )
        with reporter.stage("images") as stage:
            device = meter(pipe.device)
            times = take_turns(images, options.image_rounds, stage.update, joules=device.joules)
            in_use = device.memory()
        with reporter.stage("host"):
            host = _host(pipe, engines, person, steps)
        with reporter.stage("first image"):
            first = first_image_seconds(options.folder, pipe.backend, options.device, options.threads, steps)
        manifest = pipe.manifest
        with reporter.stage("floor"):
            files = {name: pipe.folder / manifest.graph(name).file for name in graphs}
            floor = floors(files, pipe.device, manifest.precision, options.threads)
        return {
            "kind": "bench",
            "machine": machine_facts(),
            "versions": library_versions(),
            "folder": folder_facts(manifest),
            "backend": pipe.backend,
            "device": pipe.device,
            "steps": steps,
            "graphs": {name: {**asdict(each), "floor_ms": floor[name]} for name, each in graphs.items()},
            "images": {name: asdict(times[name]) for name in calls},
            "others": {name: asdict(times[name]) for name in others or ()},
            "scaling": sweep.scaling(times),
            "ratios": _ratios(graphs, times, manifest.batch),
            "host_ms_per_step": round(host, 3),
            "host_share": round(host / graphs[step_name(manifest)].median_ms, 4),
            "first_image_seconds": round(first, 3),
            "peak_bytes": peak_memory(),
            "device_bytes": in_use,
        }  # fmt: skip


def _ratios(graphs: Mapping[str, Times], images: Mapping[str, Times], batch: int) -> dict[str, float | None]:
    """Return the price of an identity: a step against SDXL's own step of as many rows.

    `text_step` is that step for one image. A joint step has two streams of `batch` images, one from a template has one.
    """
    plain = graphs[TEXT].median_ms * batch if TEXT in graphs else None
    joint, template = (graphs[name].median_ms if name in graphs else None for name in (_JOINT, IDENTITY))
    return {
        "joint_over_plain": None if plain is None or joint is None else round(joint / (2 * plain), 3),
        "template_over_plain": None if plain is None or template is None else round(template / plain, 3),
        "joint_image_over_template_image": round(images["joint"].median_ms / images["template"].median_ms, 3)
        if "template" in images
        else None,
    }


def _host(pipe: Pipeline, engines: RecordingEngines, person: Person, steps: int) -> float:
    """Return the milliseconds per step that are spent outside the backend's library."""
    if steps < 2:
        return 0.0
    engine, seen = engines[step_name(pipe.manifest)], _StepTimes(lambda: engine.busy_seconds)
    batch = pipe.manifest.batch
    pipe.generate([PROMPT] * batch, person, seed=SEED, steps=steps, reporter=seen, output_type="latents")
    (first, busy), (last, later) = seen.moments[0], seen.moments[-1]
    return 1e3 * (last - first - (later - busy)) / (len(seen.moments) - 1)


class _StepTimes(SilentReporter):
    """A reporter that notes the time after each step, and how much of it the library has used so far."""

    def __init__(self, busy: Callable[[], float]) -> None:
        self._busy = busy
        self.moments: list[tuple[float, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        yield self

    def update(self, fraction: float, detail: str = "") -> None:
        if detail.startswith("step "):
            self.moments.append((time.perf_counter(), self._busy()))
