"""A pipeline whose engines keep the inputs of their last call, so that a measurement can repeat real calls.

Random inputs would not do: a CPU takes several times as long for the denormal numbers that they lead to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.backends import Arrays, Engine, StepLoop
from infid_export.runtime.engine_set import EngineSet, choose_target
from infid_export.runtime.pipeline import Pipeline

Array = np.ndarray[Any, Any]


class RecordingEngines(EngineSet):
    """Engines that keep the inputs of their last call, by graph in `inputs`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.inputs: dict[str, dict[str, Array]] = {}

    def __getitem__(self, graph: str) -> Engine:
        """Return a graph's engine; see `EngineSet`."""
        return _Recorder(super().__getitem__(graph), self.inputs.setdefault(graph, {}))

    def call(self, graph: str) -> Callable[[], object]:
        """Return a function that repeats a graph's last call."""
        return repeated(super().__getitem__(graph), self.inputs[graph])


class _Recorder:
    def __init__(self, engine: Engine, kept: dict[str, Array]) -> None:
        self._engine, self._kept = engine, kept
        self.inputs, self.outputs = engine.inputs, engine.outputs

    @property
    def busy_seconds(self) -> float:
        return self._engine.busy_seconds

    def run(self, inputs: Arrays) -> dict[str, Array]:
        self._kept.update(inputs)
        return self._engine.run(inputs)

    def loop(self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays, varying: Iterable[Arrays]) -> StepLoop:
        def kept() -> Iterable[Arrays]:
            for each in varying:
                self._kept.update(each)
                yield each

        self._kept.update({**fixed, **initial})
        return self._engine.loop(fixed, carry, initial, kept())

    def close(self) -> None:
        self._engine.close()


def recording_pipeline(
    folder: Path, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> tuple[Pipeline, RecordingEngines]:
    """Open an engine folder, see `Pipeline.load`."""
    found = Pipeline.load(folder, backend, device, threads=threads)
    target, place = choose_target(found.manifest, found.backend, device)
    engines = RecordingEngines(found.folder, found.manifest, found.backend, target, place, threads)
    return Pipeline(found.folder, found.manifest, engines, found.backend, found.device, found.choice), engines


def repeated(engine: Engine, inputs: Arrays) -> Callable[[], object]:
    """Return a function that runs a graph once on the same inputs, which stay on the device."""
    smallest = min(engine.outputs.values(), key=lambda spec: len(spec.shape))
    loop = engine.loop(inputs, {}, {}, repeat({}))

    def call() -> object:
        loop.step()
        return loop.read(smallest.name)  # waits for the device

    return call
