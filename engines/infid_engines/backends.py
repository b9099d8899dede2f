"""Backends: what builds and runs engines, behind one class.

Everything that the rest of the code asks of a backend is an attribute or a method of `Backend`; `registry` lists them.
Nothing heavy is imported here, nor by the modules of the backends, so that help and `doctor` can read that list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from infid_engines.errors import BackendUnavailableError, InputError
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
        inputs: the graph's inputs; ranges among their dimensions become one optimization profile.
        refit: make the weights replaceable.
        strip: leave the weights out.
        optimization_level: the builder's level, 0 to 5; None is its default.
        timing_cache: file of tactic timings, read if it exists and written back.
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
        """What of the request decides the engine besides graph and target."""
        return {"refit": self.refit, "strip": self.strip, "optimization_level": self.optimization_level}


class StepLoop(Protocol):
    """Repeated runs of one engine in which some outputs become inputs of the next run."""

    def step(self, varying: Arrays) -> None:
        """Run once with new values of the varying inputs."""

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return the present value of a carried input."""

    def close(self) -> None:
        """Free what the loop holds."""


class Engine(Protocol):
    """A loaded engine."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once."""

    def loop(self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays) -> StepLoop:
        """Start a loop.

        Args:
            fixed: inputs that stay.
            carry: per input, the output that becomes its next value.
            initial: first values of the carried inputs.
        """

    def close(self) -> None:
        """Free what the engine holds."""


@dataclass(frozen=True)
class Extra:
    """An extra of this package that installs a backend's library.

    Args:
        name: as in `pip install "infid-export[name]"`.
        libraries: the distributions it installs, each with the oldest version that was tried.
        needs_gpu: whether it is for machines with an NVIDIA GPU alone.
    """

    name: str
    libraries: Mapping[str, str]
    needs_gpu: bool = False

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f'pip install "infid-export[{self.name}]"'


class Backend(ABC):
    """A library that builds and runs engines.

    Attributes:
        name: as in `--backend`, in the manifest and in the engines' paths.
        rank: place in the order of `auto`, fastest first: the lowest number that runs here is loaded.
        extras: what installs the library; several are alternatives, of which a machine has exactly one.
        cuda_builds: CUDA major version by distribution of the library, where it has one per CUDA version.
        device: kind of device that its engines run on: `cpu` or `cuda`.
        uses_graph_as_engine: nothing is built: the exported graph, which reads its weights' files, is the engine.
        builds_anywhere: whether engines can be built without the device that they run on.
        takes_targets: whether engines are built for GPU architectures that the user can name.
        takes_flags: whether refit, strip and the optimization level mean something to it.
        takes_plugins: whether engines can hold the fused Triton kernels as plugins.
    """

    name: ClassVar[str]
    rank: ClassVar[int]
    extras: ClassVar[tuple[Extra, ...]]
    cuda_builds: ClassVar[Mapping[str, int]] = {}
    device: ClassVar[str]
    uses_graph_as_engine: ClassVar[bool] = False
    builds_anywhere: ClassVar[bool] = True
    takes_targets: ClassVar[bool] = False
    takes_flags: ClassVar[bool] = False
    takes_plugins: ClassVar[bool] = False

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the library's version.

        Raises:
            BackendUnavailableError: it is not installed.
        """

    @abstractmethod
    def check_target(self, target: str) -> None:
        """Reject a target this backend cannot build for here.

        Raises:
            InputError: the target is unknown.
            BackendUnavailableError: the GPU it needs is not here.
        """

    @abstractmethod
    def default_targets(self) -> tuple[str, ...]:
        """Return the targets built where the user names none.

        Raises:
            BackendUnavailableError: the GPU it builds for is not here.
        """

    @abstractmethod
    def present_target(self) -> str | None:
        """Return the target that this machine's device is; None where there is no such device."""

    @abstractmethod
    def check_device(self) -> None:
        """Reject a machine on which this backend's engines cannot run.

        Raises:
            BackendUnavailableError: there is no suitable device.
        """

    @abstractmethod
    def build(self, request: BuildRequest, stage: Stage) -> None:
        """Build in this process; see `worker` for building in another.

        Raises:
            BuildError: the library rejected the graph.
        """

    @abstractmethod
    def load(self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: str) -> Engine:
        """Load an engine file that has been verified."""

    def choose_target(self, device: str, targets: Sequence[str]) -> tuple[str | None, str]:
        """Choose whose engines are taken, and the kind of device they run on.

        Args:
            device: `auto`, a kind of device, or a target such as `sm_89`.
            targets: those that the folder has engines for.

        Returns:
            The target, or None where the engines are the same for all; and `cpu` or `cuda`.

        Raises:
            InputError: the device does not fit the backend or the folder.
            BackendUnavailableError: the folder's engines are for another device.
        """
        if device in targets:
            return device, self.device
        shown = ", ".join(targets) or "nothing"
        if device not in ("auto", self.device):
            raise InputError(
                f"The folder has no {self.name} engines for '{device}', only for {shown}.",
                fix=f"Use one of them, or build with --backend {self.name} --target {device}.",
            )
        present = self.present_target()
        if present not in targets:
            build = f"infid-export build --backend {self.name} --target {present}"
            raise BackendUnavailableError(
                f"The folder's {self.name} engines are for {shown}, this machine has {present or 'no GPU'}.",
                fix=build if present else "Run on a machine that has one, or choose another --backend.",
            )
        return present, self.device


@dataclass
class CheckedInputs:
    """Checks arrays against a graph's inputs."""

    specs: Mapping[str, TensorSpec] = field(default_factory=dict)

    def check(self, arrays: Arrays, names: set[str] | None = None) -> None:
        """Reject a missing, unknown, mistyped or misshapen input.

        Raises:
            InputError: names the input, what was wanted and what was got.
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
                    fix="Build the folder for that size, or change the input.",
                )
