"""Backends: the libraries that build and run engines, behind one class.

Everything that other code needs from a backend is an attribute or a method of `Backend`; `registry` lists the backends.
Imports are light here and in the modules of the backends, so that help and `doctor` can read that list.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from infid_engines.device import Device, requested_device
from infid_engines.errors import BackendUnavailableError, EngineFolderError, InputError
from infid_engines.manifest import TensorSpec
from infid_engines.progress import Stage

if TYPE_CHECKING:
    import numpy as np

Arrays: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    Args:
        onnx: the graph.
        output: the engine file to write.
        target: GPU architecture (`sm_89`).
        inputs: the graph's inputs; dynamic dimensions become one optimization profile.
        refit: make the weights replaceable.
        strip: build without weights.
        optimization_level: the builder's optimization level, 0 to 5; None is its default.
        timing_cache: file with tactic timings; read if it exists, and written back.
        plugins: kernels for the graph's plugin nodes, see `infid_engines.tensorrt_plugin`.
    """

    onnx: Path
    output: Path
    target: str
    inputs: tuple[TensorSpec, ...] = ()
    refit: bool = False
    strip: bool = False
    optimization_level: int | None = None
    timing_cache: Path | None = None
    plugins: Path | None = None

    @property
    def flags(self) -> dict[str, Any]:
        """The options that the engine depends on besides graph and target."""
        return {"refit": self.refit, "strip": self.strip, "optimization_level": self.optimization_level}


class StepLoop(Protocol):
    """Repeated runs of one engine in which some outputs become inputs of the next run."""

    def step(self) -> None:
        """Start the next run; a device may still compute when this returns."""

    def read(self, output: str) -> np.ndarray[Any, Any]:
        """Return an output of the last step, once it is computed."""

    def close(self) -> None:
        """Free the loop's resources."""


class Engine(Protocol):
    """A loaded engine.

    Attributes:
        inputs: by name.
        outputs: by name.
    """

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @property
    def busy_seconds(self) -> float:
        """Seconds spent in calls of the library so far, also waiting for the device."""

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once."""

    def loop(self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays, varying: Iterable[Arrays]) -> StepLoop:
        """Start a loop.

        Args:
            fixed: inputs that do not change.
            carry: per input, the output that becomes its next value.
            initial: first values of the carried inputs.
            varying: the other inputs of each step. A device uploads those of the next step while it computes.
        """

    def close(self) -> None:
        """Free the engine's resources."""


class LoopEngine(Engine, Protocol):
    """An engine that checks its inputs.

    Attributes:
        checked: its inputs.
    """

    checked: CheckedInputs


class CarryingLoop:
    """What the loops of all backends have in common: checked inputs, and those of the next step at hand.

    Args:
        engine: the engine.
        fixed: inputs that do not change.
        carry: per input, the output that becomes its next value.
        initial: initial values of the carried inputs.
        varying: the other inputs of each step.

    Raises:
        InputError: an input is missing, unknown, mistyped or misshapen.
    """

    def __init__(
        self, engine: LoopEngine, fixed: Arrays, carry: Mapping[str, str], initial: Arrays, varying: Iterable[Arrays]
    ) -> None:
        self._carry, self._varying = dict(carry), iter(varying)
        self._became = {result: source for source, result in carry.items()}
        self._next = next(self._varying, None)
        engine.checked.check({**fixed, **initial, **(self._next or {})})

    def _varying_now(self) -> Arrays:
        """Return the varying inputs of the step that starts."""
        if self._next is None:
            raise RuntimeError("the loop has no further step")
        return self._next

    def _advance(self) -> None:
        """Get the varying inputs of the next step."""
        self._next = next(self._varying, None)

    def _end(self) -> None:
        """Release the inputs."""
        self._next, self._varying = None, iter(())


@dataclass(frozen=True)
class Extra:
    """An extra of this package that installs a backend's library.

    Args:
        name: as in `pip install "infid-export[name]"`.
        libraries: the distributions that it installs, each with the oldest tested version.
        needs_gpu: whether it is only for machines with an NVIDIA GPU.
        unfit: releases of its libraries that must not be used, each with what is wrong with it.
    """

    name: str
    libraries: Mapping[str, str]
    needs_gpu: bool = False
    unfit: Mapping[str, str] = field(default_factory=dict)

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f'pip install "infid-export[{self.name}]"'


class Backend(ABC):
    """A library that builds and runs engines.

    Attributes:
        name: name in `--backend`, in the manifest and in the engines' paths.
        extras: the extras that install the library; several are alternatives, and a machine has exactly one.
        cuda_builds: CUDA major version by distribution, if the library has one distribution per CUDA version.
        device: kind of device that its engines run on: `cpu` or `cuda`.
        suffix: suffix of its engine files.
        automatic: whether `--backend auto` builds its engines.
        uses_graph_as_engine: whether the exported graph, with its weights files, is the engine, so nothing is built.
        builds_from_modules: whether the exporter compiles its engines from the PyTorch modules; `build` is not called.
        reads_weights: whether its engines read the folder's weights files.
        compares: whether a build and `verify` compare its engines with the reference, since it runs where it builds.
        builds_anywhere: whether engines can be built without the device that they run on.
        takes_targets: whether the user can choose the GPU architectures of engines.
        takes_flags: whether it supports refit, strip and the optimization level.
        takes_plugins: whether engines can contain the fused Triton kernels as plugins.
        takes_threads: whether the user can choose the number of CPU threads.
    """

    name: ClassVar[str]
    extras: ClassVar[tuple[Extra, ...]]
    cuda_builds: ClassVar[Mapping[str, int]] = {}
    device: ClassVar[str]
    suffix: ClassVar[str] = "engine"
    automatic: ClassVar[bool] = True
    uses_graph_as_engine: ClassVar[bool] = False
    builds_from_modules: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    builds_anywhere: ClassVar[bool] = True
    takes_targets: ClassVar[bool] = False
    takes_flags: ClassVar[bool] = False
    takes_plugins: ClassVar[bool] = False
    takes_threads: ClassVar[bool] = False

    @property
    @abstractmethod
    def rank(self) -> int:
        """Position in the order of `auto`, fastest first: the lowest rank that runs here is used."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the library's version.

        Raises:
            BackendUnavailableError: it is not installed.
        """

    @abstractmethod
    def check_target(self, target: str) -> None:
        """Reject a target that this backend cannot build for on this machine.

        Raises:
            InputError: the target is unknown.
            BackendUnavailableError: the GPU that it needs is missing.
        """

    @abstractmethod
    def default_targets(self) -> tuple[str, ...]:
        """Return the targets that are built if the user names none.

        Raises:
            BackendUnavailableError: the GPU that it builds for is missing.
        """

    @abstractmethod
    def present_target(self, index: int = 0) -> str | None:
        """Return the target of this machine's device, of several GPUs the numbered one; None without such a device."""

    @abstractmethod
    def check_device(self, index: int = 0) -> None:
        """Reject a machine, or one of its GPUs, on which this backend's engines cannot run.

        Raises:
            BackendUnavailableError: there is no suitable device.
        """

    def build(self, request: BuildRequest, stage: Stage) -> None:
        """Build in this process; see `worker` for builds in a separate one.

        Raises:
            BuildError: the library rejected the graph.
        """
        raise RuntimeError(f"{self.name} builds nothing from a graph")

    @abstractmethod
    def load(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Device,
        threads: int | None = None,
    ) -> Engine:
        """Load a verified engine file; `threads` only if `takes_threads`."""

    def choose_target(self, device: str, targets: Sequence[str]) -> tuple[str | None, Device]:
        """Choose the target whose engines are used, and the device that they run on.

        Args:
            device: `auto`, a device such as `cuda:1`, or a target such as `sm_89`.
            targets: the targets that the folder has engines for.

        Returns:
            The target, or None if the engines are the same for all targets; and the device.

        Raises:
            InputError: the device does not fit the backend or the folder.
            BackendUnavailableError: the folder's engines are for another device, or the machine lacks it.
        """
        if device in targets:
            return device, Device(self.device)
        shown = ", ".join(targets) or "nothing"
        asked = Device(self.device) if device == "auto" else requested_device(device)
        if asked is None or asked.kind != self.device:
            raise InputError(
                f"The folder has no {self.name} engines for '{device}', only for {shown}.",
                fix=f"Use one of them, or build with --backend {self.name} --target {device}.",
            )
        present = self.present_target(asked.index)
        if present not in targets:
            build = f"infid-export build --backend {self.name} --target {present}"
            where = f"{asked} is" if asked.index else "this machine has"
            raise BackendUnavailableError(
                f"The folder's {self.name} engines are for {shown}, but {where} {present or 'no GPU'}.",
                fix=build if present else "Run on a machine with such a GPU, or choose another --backend.",
            )
        return present, asked


@dataclass
class CheckedInputs:
    """Checks arrays against a graph's inputs."""

    specs: Mapping[str, TensorSpec] = field(default_factory=dict)

    def check(self, arrays: Arrays, names: set[str] | None = None) -> None:
        """Reject a missing, unknown, mistyped or misshapen input.

        Raises:
            InputError: the message names the input, and what was expected and given.
        """
        wanted = set(self.specs) if names is None else names
        for problem, found in (("lacks", wanted - set(arrays)), ("has no", set(arrays) - (wanted & set(self.specs)))):
            if found:
                raise InputError(
                    f"The graph's call {problem} input {', '.join(sorted(found))}.",
                    fix=f"Its inputs are {', '.join(self.specs)}.",
                )
        for name, array in arrays.items():
            spec = self.specs[name]
            fits = len(array.shape) == len(spec.shape) and all(
                extent == wanted_extent
                if isinstance(wanted_extent, int)
                else wanted_extent[0] <= extent <= wanted_extent[-1]
                for extent, wanted_extent in zip(array.shape, spec.shape, strict=True)
            )
            if not fits or array.dtype.name != spec.dtype:
                raise InputError(
                    f"Input {name} must be {spec.dtype} {list(spec.shape)}, not {array.dtype.name} "
                    f"{list(array.shape)}.",
                    fix="Build the folder for this size, or change the input.",
                )


class CountedEngine:
    """The part of an engine that counts the seconds in its library, and names the fix for the library's errors.

    Args:
        inputs: the graph's inputs.
        outputs: the graph's outputs.

    Attributes:
        busy_seconds: see `Engine`.
        failure: what the error says, such as "onnxruntime cannot run the graph".
        errors: the library's exceptions.
    """

    failure: ClassVar[str]
    errors: ClassVar[type[Exception]] = Exception

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self.checked = CheckedInputs(self.inputs)
        self.busy_seconds = 0.0

    @contextmanager
    def in_library(self) -> Iterator[None]:
        """Count the seconds of a call.

        Raises:
            EngineFolderError: the call failed.
        """
        started = time.perf_counter()
        try:
            yield
        except self.errors as error:
            raise EngineFolderError(
                f"{self.failure} ({error}).",
                fix="Run `infid-export verify` on the folder, and build it again if it fails.",
            ) from error
        finally:
            self.busy_seconds += time.perf_counter() - started
