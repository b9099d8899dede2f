"""Backends: what builds and runs engines, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infid_engines.errors import InputError
from infid_engines.manifest import TensorSpec
from infid_engines.progress import Stage

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    Args:
        onnx: the graph.
        output: the engine file to write.
        target: GPU architecture (`sm_89`).
        inputs: the graph's inputs; ranges among their dimensions become one optimisation profile.
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


class Backend(Protocol):
    """A library that builds and runs engines."""

    name: str

    def versions(self) -> dict[str, str]:
        """Return the library's version.

        Raises:
            BackendUnavailableError: it is not installed.
        """

    def check_target(self, target: str) -> None:
        """Refuse a target this backend cannot build for here.

        Raises:
            InputError: the target is unknown.
            BackendUnavailableError: the GPU it needs is not here.
        """

    def default_targets(self) -> tuple[str, ...]:
        """Return the targets built where the user names none."""

    def present_target(self) -> str | None:
        """Return the target that this machine's device is; None where there is no such device."""

    def check_device(self) -> None:
        """Refuse a machine on which this backend's engines cannot run.

        Raises:
            BackendUnavailableError: there is no suitable device.
        """

    def build(self, request: BuildRequest, stage: Stage) -> None:
        """Build in this process; see `worker` for building in another.

        Raises:
            BuildError: the library refused the graph.
        """

    def load(self, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: str) -> Engine:
        """Load an engine file that has been verified."""


@dataclass
class CheckedInputs:
    """Checks arrays against a graph's inputs."""

    specs: Mapping[str, TensorSpec] = field(default_factory=dict)

    def check(self, arrays: Arrays, names: set[str] | None = None) -> None:
        """Refuse a missing, unknown, mistyped or misshapen input.

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
