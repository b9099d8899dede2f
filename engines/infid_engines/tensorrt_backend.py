"""TensorRT and TensorRT-RTX: one code path for both libraries, which share their Python interface.

`tensorrt_rtx` builds for RTX-class GPUs without a GPU; `tensorrt` builds on and for the GPU that is present.
Networks are strongly typed: every dtype comes from the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from infid_engines import tensorrt_plugin
from infid_engines.atomic_files import whole_file
from infid_engines.backends import Backend, BuildRequest, Extra
from infid_engines.device import Device
from infid_engines.errors import BackendUnavailableError, BuildError, EngineFolderError, InputError
from infid_engines.gpu import present_architecture
from infid_engines.manifest import TensorSpec
from infid_engines.progress import Stage

_PREFIX = "sm_"
_CUDA_PYTHON = {"cuda-python": "13"}
_FIRST = Device("cuda")


class TensorRTBackend(Backend):
    """TensorRT: builds on and for the GPU that is present. The name is also the Python module's."""

    name = "tensorrt"
    rank = 0
    extras = (Extra("tensorrt", {"tensorrt": "10.10", **_CUDA_PYTHON}),)
    cuda_builds: ClassVar[Mapping[str, int]] = {"tensorrt-cu12": 12, "tensorrt-cu13": 13}
    device = "cuda"
    builds_anywhere = False
    takes_targets = takes_flags = takes_plugins = True

    def _library(self) -> Any:
        try:
            return importlib.import_module(self.name)
        except ImportError as error:
            raise BackendUnavailableError(f"{self.name} is not installed.", fix=self.extras[0].install) from error

    def versions(self) -> dict[str, str]:
        """Return the library's version."""
        return {self.name: self._library().__version__}

    def check_target(self, target: str) -> None:
        """Accept the architecture of the GPU that is present."""
        _check_architecture(target)
        present = present_architecture()
        if present != target:
            raise BackendUnavailableError(
                f"TensorRT builds only for the GPU that it runs on; here it is {present or 'none'}, not {target}.",
                fix="Run the build on that GPU, or use --backend tensorrt_rtx for RTX-class targets.",
            )

    def default_targets(self) -> tuple[str, ...]:
        """Return the GPU that is present."""
        present = present_architecture()
        if present is None:
            raise BackendUnavailableError(
                "TensorRT needs the GPU that it builds for, but this machine has none.",
                fix="Use --backend tensorrt_rtx, which builds without a GPU, or run on a GPU machine.",
            )
        return (present,)

    def present_target(self, index: int = 0) -> str | None:
        """Return the architecture of a GPU as `sm_…`."""
        return present_architecture(index)

    def check_device(self, index: int = 0) -> None:
        """Reject a machine without an NVIDIA GPU, or without the library that copies to it."""
        if present_architecture(index) is None:
            raise BackendUnavailableError(
                f"{self.name} engines need an NVIDIA GPU, but none was found.",
                fix="Check the driver with `infid-export doctor`, or use --backend onnxruntime.",
            )
        try:
            importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise BackendUnavailableError(
                f"{self.name} engines need cuda-python, which is not installed.", fix=self.extras[0].install
            ) from error

    def build(self, request: BuildRequest, stage: Stage) -> None:
        """Parse the graph and build its engine.

        Raises:
            BuildError: the parser or the builder rejected the graph.
        """
        trt = self._library()
        if request.plugins is not None:
            plugins = importlib.import_module(f"{self.name}.plugin")
            tensorrt_plugin.register(plugins, tensorrt_plugin.read_variants(request.plugins))
        messages: list[str] = []
        logger = _collecting_logger(trt, messages)
        builder = trt.Builder(logger)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(request.onnx)):
            raise BuildError(
                f"{self.name} cannot read {request.onnx.name}: {_parser_errors(parser)}.",
                fix="Please report this with the output of `infid-export doctor`.",
            )
        config = builder.create_builder_config()
        self._configure(trt, builder, config, request)
        config.progress_monitor = _progress_monitor(trt, stage)
        cache = self._timing_cache(config, request)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise BuildError(
                f"{self.name} could not build {request.onnx.stem} for {request.target}: "
                f"{'; '.join(messages[-3:]) or 'no message'}.",
                fix="If memory ran out, close other programs, or build fewer graphs at once with --graph.",
            )
        with request.output.open("wb") as file:
            file.write(memoryview(engine))
        if cache is not None and request.timing_cache is not None:
            with whole_file(request.timing_cache) as partial:
                partial.write_bytes(memoryview(cache.serialize()))

    def _configure(self, trt: Any, builder: Any, config: Any, request: BuildRequest) -> None:
        if request.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if request.strip:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if request.optimization_level is not None:
            config.builder_optimization_level = request.optimization_level
        ranged = [spec for spec in request.inputs if any(isinstance(extent, list) for extent in spec.shape)]
        if ranged:
            profile = builder.create_optimization_profile()
            for spec in ranged:
                bounds = [[d if isinstance(d, int) else d[i] for d in spec.shape] for i in range(3)]
                profile.set_shape(spec.name, *bounds)
            config.add_optimization_profile(profile)

    def _timing_cache(self, config: Any, request: BuildRequest) -> Any:
        """Attach the timing cache."""
        if request.timing_cache is None:
            return None
        stored = request.timing_cache.read_bytes() if request.timing_cache.is_file() else b""
        cache = config.create_timing_cache(stored)
        config.set_timing_cache(cache, ignore_mismatch=False)
        return cache

    def load(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Device = _FIRST,
        threads: int | None = None,
    ) -> Any:
        """Load an engine onto the GPU.

        Raises:
            BackendUnavailableError: there is no GPU.
            EngineFolderError: the engine was built with another version or for another GPU.
        """
        from infid_engines.tensorrt_runner import TensorRTEngine, on_gpu

        self.check_device(device.index)
        from cuda.bindings import runtime as cudart

        present = present_architecture(device.index)
        trt = self._library()
        with on_gpu(cudart, device.index):
            runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise EngineFolderError(
                    f"{path} was not built with {self.name} {trt.__version__}, or not for this GPU ({present}).",
                    fix=f"infid-export build --backend {self.name} --target {present}",
                )
            return TensorRTEngine(trt, runtime, engine, inputs, outputs, device.index)


class TensorRTRTXBackend(TensorRTBackend):
    """TensorRT-RTX: builds for RTX-class GPUs without a GPU."""

    name = "tensorrt_rtx"
    rank = 1
    extras = (Extra("tensorrt-rtx", {"tensorrt-rtx-cu13": "1.4", **_CUDA_PYTHON}),)
    cuda_builds: ClassVar[Mapping[str, int]] = {"tensorrt-rtx-cu13": 13}
    builds_anywhere = True
    takes_plugins = False

    def targets(self) -> tuple[str, ...]:
        """Return the architectures that it builds for, as `sm_…`."""
        return tuple(
            _PREFIX + name.removeprefix("SM")
            for name in self._library().ComputeCapability.__members__
            if name.startswith("SM")
        )

    def check_target(self, target: str) -> None:
        """Accept the architectures that it builds for."""
        _check_architecture(target)
        if target not in self.targets():
            raise InputError(
                f"TensorRT-RTX cannot build for {target}; it builds for {', '.join(self.targets())}.",
                fix="For data-center GPUs such as sm_90 use --backend tensorrt on the GPU itself.",
            )

    def default_targets(self) -> tuple[str, ...]:
        """Return one architecture that many GPUs have."""
        return ("sm_89",)

    def check_device(self, index: int = 0) -> None:
        """Reject a machine without a GPU that TensorRT-RTX runs on, such as a data-center GPU."""
        super().check_device(index)
        present = present_architecture(index)
        if present not in self.targets():
            raise BackendUnavailableError(
                f"TensorRT-RTX does not run on {present}, only on {', '.join(self.targets())}.",
                fix="Use another backend, such as --backend tensorrt.",
            )

    def build(self, request: BuildRequest, stage: Stage) -> None:
        """Parse the graph and build its engine.

        Raises:
            BackendUnavailableError: this build needs a GPU, and there is none.
            BuildError: the parser or the builder rejected the graph.
        """
        if (request.refit or request.strip) and present_architecture() is None:
            # measured with 1.7.1: the builder calls CUDA for such engines and fails with an internal error
            raise BackendUnavailableError(
                "TensorRT-RTX needs a GPU to build refittable or stripped engines.",
                fix="Leave out --refit and --strip, or build on a machine with a GPU.",
            )
        super().build(request, stage)

    def _configure(self, trt: Any, builder: Any, config: Any, request: BuildRequest) -> None:
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, "SM" + request.target.removeprefix(_PREFIX))
        config.set_compute_capability(capability, 0)
        super()._configure(trt, builder, config, request)

    def _timing_cache(self, config: Any, request: BuildRequest) -> Any:
        """Attach nothing: TensorRT-RTX does no timing at build time."""
        return None


def _check_architecture(target: str) -> None:
    """Reject names that are not GPU architectures.

    Raises:
        InputError: the target is not a GPU architecture.
    """
    if not target.startswith(_PREFIX) or not target.removeprefix(_PREFIX).isdigit():
        raise InputError(f"'{target}' is not a GPU architecture.", fix="Give an architecture such as sm_89.")


def _network_flags(trt: Any) -> int:
    """Request strong typing if it is not the only mode (TensorRT 10)."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_errors(parser: Any) -> str:
    problems = []
    for index in range(min(parser.num_errors, 3)):
        error = parser.get_error(index)
        problems.append(f"node {error.node_name() or error.node()} ({error.node_operator()}): {error.desc()}")
    return "; ".join(problems) or "no message"


def _collecting_logger(trt: Any, messages: list[str]) -> Any:
    class CollectingLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return CollectingLogger()


def _progress_monitor(trt: Any, stage: Stage) -> Any:
    """Translate TensorRT's nested phases into one fraction: the outermost phase, refined by its current child."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[int, int, str | None]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = (0, max(num_steps, 1), parent_phase)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _, steps, parent = self.phases.get(phase_name, (0, 1, None))
            self.phases[phase_name] = (step + 1, steps, parent)
            stage.update(self._fraction(), phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def _fraction(self) -> float:
            fraction, width, parent = 0.0, 1.0, None
            for name, (done, steps, above) in self.phases.items():
                if above == parent:
                    fraction += width * min(done / steps, 1.0)
                    width, parent = width / steps, name
            return min(fraction, 1.0)

    return Monitor()
