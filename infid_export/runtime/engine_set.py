"""The engines of a folder on one backend. The choice has a reason; engines are verified and loaded on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from infid_engines.backends import Engine
from infid_engines.device import Device, requested_device
from infid_engines.errors import BackendUnavailableError, EngineFolderError, InputError
from infid_engines.manifest import EngineRecord, FileRecord, Manifest, stored_engines, verify_file
from infid_engines.progress import Reporter
from infid_engines.registry import PARITY_BACKEND, fastest_first, get_backend

_STRIPPED = "{} holds no weights (--strip): it needs TensorRT's refitter, which this project does not run."


class EngineSet:
    """Engines by graph. Each is verified against the manifest before it is loaded.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        backend: name of the backend.
        target: the GPU architecture whose engines are used; None uses the only one.
        device: what the engines run on.
        threads: CPU threads, for a backend that takes them; None is its default.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, backend: str, target: str | None, device: Device,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._manifest, self._threads = folder, manifest, threads
        self._backend, self._target, self._device = backend, target, device
        self._engines: dict[str, Engine] = {}
        self._verified: set[str] = set()

    def __getitem__(self, graph: str) -> Engine:
        """Return a graph's engine.

        Raises:
            EngineFolderError: the folder has no such engine, or one of its files is damaged.
        """
        if graph not in self._engines:
            record, stored = self._manifest.graph(graph), self._stored(graph)
            for name in self._files(graph):
                self.verify(name)
            self._engines[graph] = get_backend(self._backend).load(
                self._folder / stored.file, record.inputs, record.outputs, self._device, self._threads
            )
        return self._engines[graph]

    def prepare(self, graphs: Sequence[str], reporter: Reporter, go_on: Callable[[], None] = lambda: None) -> None:
        """Verify and load the engines that are not loaded yet, as the planned stage `loading`.

        Args:
            graphs: names of the graphs.
            reporter: receives the progress.
            go_on: called before each engine; an exception from it stops the loading.
        """
        missing = [graph for graph in graphs if graph not in self._engines]
        with reporter.stage("loading") as stage:
            for number, graph in enumerate(missing):
                stage.update(number / len(missing), graph)
                go_on()
                self[graph]
            stage.update(1.0)

    def unread_bytes(self, graphs: Sequence[str]) -> int:
        """Return how many bytes still have to be read before these graphs can run."""
        names = {name for graph in graphs if graph not in self._engines for name in self._files(graph)}
        return sum(self._record(name).size for name in names)

    def verify(self, name: str) -> Path:
        """Check a file of the folder once, and return its path.

        Raises:
            EngineFolderError: it is missing or damaged.
        """
        if name not in self._verified:
            verify_file(self._folder, name, self._record(name))
            self._verified.add(name)
        return self._folder / name

    def close(self) -> None:
        """Free all engines. They are verified and loaded again on the next use."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._verified.clear()

    def _stored(self, graph: str) -> EngineRecord:
        stored = stored_engines(self._manifest, self._backend, self._target).get(graph)
        if stored is None:
            raise EngineFolderError(
                f"{self._folder} has no {self._backend} engine of {graph}.",
                fix=f"infid-export build --backend {self._backend} -o {self._folder}",
            )
        if stored.flags.get("strip"):
            raise EngineFolderError(_STRIPPED.format(stored.file), fix="Build without --strip.")
        return stored

    def _files(self, graph: str) -> list[str]:
        weights = self._manifest.graph(graph).weights if get_backend(self._backend).reads_weights else ()
        return [self._stored(graph).file, *weights]

    def _record(self, name: str) -> FileRecord:
        if name not in self._manifest.files:
            raise EngineFolderError(
                f"The manifest of {self._folder} does not list {name}.", fix="Build the engine folder again."
            )
        return self._manifest.files[name]


def choose_backend(manifest: Manifest, device: str = "auto") -> tuple[str, str]:
    """Choose the fastest backend that the folder has engines for and that runs here, and say why not a faster one.

    Args:
        manifest: the folder's manifest.
        device: as in `choose_target`.

    Raises:
        InputError: there is no such device.
        EngineFolderError: the folder has no engine that runs here.
        BackendUnavailableError: the folder has engines for the backend that runs everywhere, but it is not installed;
            or the machine has fewer GPUs.
    """
    asked = requested_device(device)
    reasons = []
    for backend in fastest_first():
        name = backend.name
        if not stored_engines(manifest, name):
            reasons.append(f"{name} not used: the folder has no engines for it")
            continue
        stripped = next(
            (each.file for each in manifest.engines if each.backend == name and each.flags.get("strip")), None
        )
        if stripped is not None:
            reasons.append(f"{name} not used: {_STRIPPED.format(stripped)}")
            continue
        try:
            backend.versions()
            backend.check_device(asked.index if asked else 0)
            choose_target(manifest, name, device)
        except (BackendUnavailableError, InputError) as error:
            if name == PARITY_BACKEND:  # a fault of the installation, not of the folder
                raise
            reasons.append(f"{name} not used: {error.problem}")
            continue
        return name, "; ".join([f"{name}: the folder has engines for it and this machine runs them", *reasons])
    raise EngineFolderError(
        f"The folder has no engine that runs here: {'; '.join(reasons)}.",
        fix=f"infid-export build --backend {PARITY_BACKEND}",
    )


def choose_target(manifest: Manifest, backend: str, device: str) -> tuple[str | None, Device]:
    """Choose the target whose engines are used, and the device they run on; see `Backend.choose_target`.

    Args:
        manifest: the folder's manifest.
        backend: name of the backend.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, or a GPU architecture such as `sm_89`.
    """
    targets = sorted({engine.target for engine in manifest.engines if engine.backend == backend})
    return get_backend(backend).choose_target(device, targets)
