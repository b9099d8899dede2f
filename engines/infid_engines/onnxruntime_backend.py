"""ONNX Runtime: runs the exported graphs directly, on the CPU or, with onnxruntime-gpu, on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.backends import Backend, Extra
from infid_engines.device import CPU, Device, requested_device
from infid_engines.errors import BackendUnavailableError, EngineFolderError, InputError
from infid_engines.manifest import TensorSpec

if TYPE_CHECKING:
    from infid_engines.onnxruntime_runner import OnnxRuntimeEngine

# Above this size, graph optimization would keep an fp32 copy of every fp16 weight (the CPU kernels are fp32):
# 10 GB more for SDXL. Below it, the speed is worth the copy.
LARGE_WEIGHTS = 1 << 31


_CAPTURING = {"enable_cuda_graph": "1"}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_UNFIT = {"1.29": "computes fp16 on a CPU many times slower than other releases"}
_CPU = Extra("cpu", {"onnxruntime": "1.23"}, unfit=_UNFIT)
_CUDA = Extra("cuda", {"onnxruntime-gpu": "1.23"}, needs_gpu=True, unfit=_UNFIT)


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, which comes from either of two distributions.

    Raises:
        BackendUnavailableError: neither is installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"ONNX Runtime cannot be imported ({error}).",
            fix=f"{_CPU.install}, or on a machine with an NVIDIA GPU {_CUDA.install}",
        ) from error
    return onnxruntime


def session_options(ort: Any, threads: int | None = None, spin: bool = False) -> Any:
    """Return options of a session.

    Args:
        ort: the module `onnxruntime`.
        threads: number of threads; None is one per core.
        spin: whether its threads wait for the next call with full use of their cores.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    return options


class OnnxRuntimeBackend(Backend):
    """The default: nothing to build, and parity on every machine."""

    name = "onnxruntime"
    rank = 3
    extras = (_CPU, _CUDA)
    device = "cpu"
    uses_graph_as_engine = reads_weights = True
    takes_threads = True

    def versions(self) -> dict[str, str]:
        """Return the version of ONNX Runtime."""
        return {self.name: import_onnxruntime().__version__}

    def check_target(self, target: str) -> None:
        """Accept `cpu` and `cuda`; the graph is the same for both."""
        if target not in _PROVIDERS:
            raise InputError(f"{self.name} has no target '{target}'.", fix=f"Use {' or '.join(_PROVIDERS)}.")

    def default_targets(self) -> tuple[str, ...]:
        """Return the target that every machine has."""
        return ("cpu",)

    def present_target(self, index: int = 0) -> str | None:
        """Return the CPU, which is always available."""
        return "cpu"

    def check_device(self, index: int = 0) -> None:
        """Accept every machine."""

    def choose_target(self, device: str, targets: Sequence[str]) -> tuple[str | None, Device]:
        """Use the graphs, which are the same for all targets; `auto` runs them on the CPU."""
        asked = CPU if device == "auto" else requested_device(device)
        if asked is None:
            raise InputError(f"{self.name} has no device '{device}'.", fix=f"Use {' or '.join(_PROVIDERS)}.")
        return None, asked

    def load(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Device = CPU,
        threads: int | None = None,
    ) -> OnnxRuntimeEngine:
        """Load a graph.

        Raises:
            BackendUnavailableError: CUDA was requested, but this onnxruntime does not support it.
            EngineFolderError: the file cannot be loaded.
        """
        ort = import_onnxruntime()
        provider = _PROVIDERS[device.kind]
        if provider not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"This onnxruntime ({ort.__version__}) cannot run on {device}.",
                fix=f"pip uninstall -y onnxruntime && {_CUDA.install}",
            )
        # the next call of a step comes at once; after other graphs, spinning threads would slow down the next graph
        repeats = any(spec.name.startswith("next_") for spec in outputs)
        options = session_options(ort, threads, spin=repeats)
        weights = sum(file.stat().st_size for file in path.parent.glob("*.safetensors"))
        if device == CPU and weights > LARGE_WEIGHTS:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
        # a captured step writes its outputs to fixed addresses, so their shapes must be known
        captures = device != CPU and repeats and all(isinstance(n, int) for spec in outputs for n in spec.shape)
        place = {} if device == CPU else {"device_id": str(device.index)}
        try:
            if captures:
                try:
                    session = ort.InferenceSession(str(path), options, providers=[(provider, place | _CAPTURING)])
                except Exception:  # some operators of the graph run on the CPU, so it cannot be captured
                    captures = False
            if not captures:
                session = ort.InferenceSession(str(path), options, providers=[(provider, place)])
        except Exception as error:  # onnxruntime's exception types are not public
            raise EngineFolderError(
                f"onnxruntime cannot load {path}: {error}",
                fix="Build the folder again with `infid-export build`.",
            ) from error
        if session.get_providers()[0] != provider:
            raise BackendUnavailableError(
                f"onnxruntime found no usable CUDA device and chose {session.get_providers()[0]}.",
                fix="Check the driver with `infid-export doctor`, or use the CPU.",
            )
        _check_names(path, session, inputs, outputs)
        from infid_engines.onnxruntime_runner import OnnxRuntimeEngine

        return OnnxRuntimeEngine(session, inputs, outputs, device, captures)


def _check_names(path: Path, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Reject a graph whose inputs or outputs differ from the manifest's.

    Raises:
        EngineFolderError: the message names the first difference.
    """
    for kind, specs, values in (("inputs", inputs, session.get_inputs()), ("outputs", outputs, session.get_outputs())):
        different = sorted({spec.name for spec in specs} ^ {value.name for value in values})
        if different:
            raise EngineFolderError(
                f"The {kind} of {path} differ from the manifest's: only one of them has {different[0]!r}.",
                fix="Build the folder again with `infid-export build`.",
            )
