"""Runs TensorRT engines with device buffers and one stream through cuda-python; steps allocate nothing."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from infid_engines.backends import Arrays, CheckedInputs
from infid_engines.errors import BackendUnavailableError, EngineFolderError
from infid_engines.manifest import TensorSpec

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class TensorRTEngine:
    """A deserialized engine with an execution context.

    Args:
        trt: the library's module.
        runtime: kept alive as long as the engine.
        engine: ICudaEngine.
        inputs: the graph's inputs.
        outputs: the graph's outputs.

    Raises:
        BackendUnavailableError: the GPU has too little memory.
        EngineFolderError: the engine does not belong to the graph.
    """

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        engine: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self._runtime, self._engine = runtime, engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise _no_room(engine.device_memory_size_v2, "GPU memory", "the engine's intermediate results")
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if names != set(self.inputs) | set(self.outputs):
            raise EngineFolderError(
                "The engine's inputs and outputs differ from its graph's.",
                fix="Build the folder again with `infid-export build`.",
            )
        self._checked = CheckedInputs(self.inputs)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Copy inputs to the device, run once, and copy all outputs back."""
        self._checked.check(inputs)
        loop = TensorRTLoop(self, {}, {}, inputs)
        try:
            loop.step({})
            return {name: loop.read_output(name) for name in self.outputs}
        finally:
            loop.close()

    def loop(self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays) -> TensorRTLoop:
        """Start a loop: all buffers are allocated here, and fixed inputs are copied once."""
        self._checked.check({**fixed, **initial}, set(fixed) | set(carry))
        return TensorRTLoop(self, carry, fixed, initial)

    @property
    def context(self) -> Any:
        """The IExecutionContext."""
        return self._context

    def close(self) -> None:
        """Free the context and the engine."""
        self._context = self._engine = self._runtime = None


class TensorRTLoop:
    """See `StepLoop`. A carried tensor has two buffers, which are swapped at every step.

    Args:
        engine: the engine.
        carry: per input, the output that becomes its next value.
        fixed: inputs that do not change.
        initial: initial values of the carried inputs.

    Raises:
        BackendUnavailableError: GPU memory or page-locked host memory is too small for the buffers.
    """

    def __init__(self, engine: TensorRTEngine, carry: Mapping[str, str], fixed: Arrays, initial: Arrays) -> None:
        self._stream: Any = None
        self._buffers: dict[str, int] = {}
        self._staging: dict[str, np.ndarray[Any, Any]] = {}
        self._pinned: list[Any] = []
        from cuda.bindings import runtime as cudart

        self._cudart, self._engine = cudart, engine
        self._carry = dict(carry)
        self._shapes = {name: array.shape for name, array in {**fixed, **initial}.items()}
        self._stream = _checked(cudart.cudaStreamCreate())
        try:
            self._prepare({**fixed, **initial})
        except BaseException:
            with contextlib.suppress(RuntimeError):  # report the first error
                self.close()
            raise

    def _prepare(self, first: Arrays) -> None:
        """Allocate all buffers, and copy the initial values."""
        engine = self._engine
        for name, spec in engine.inputs.items():
            shape = self._shapes.get(name, tuple(d if isinstance(d, int) else d[1] for d in spec.shape))
            self._shapes[name] = shape
            engine.context.set_input_shape(name, shape)
            self._allocate(name, shape, spec.dtype)
        for name, spec in engine.outputs.items():
            shape = tuple(engine.context.get_tensor_shape(name))
            self._shapes[name] = shape
            self._allocate(name, shape, spec.dtype)
        for name, address in self._buffers.items():
            engine.context.set_tensor_address(name, address)
        for name, array in first.items():
            self._upload(name, array)

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._buffers[name] = _allocated(self._cudart.cudaMalloc(max(size, 1)), size, "GPU memory", name)
        pointer = _allocated(self._cudart.cudaMallocHost(max(size, 1)), size, "page-locked host memory", name)
        self._pinned.append(pointer)
        memory = (ctypes.c_byte * size).from_address(int(pointer))
        self._staging[name] = np.frombuffer(memory, dtype).reshape(shape)

    def _upload(self, name: str, array: np.ndarray[Any, Any]) -> None:
        staging = self._staging[name]
        np.copyto(staging, array)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(
            self._cudart.cudaMemcpyAsync(self._buffers[name], staging.ctypes.data, staging.nbytes, kind, self._stream)
        )

    def step(self, varying: Arrays) -> None:
        """Upload the varying inputs, enqueue a run, and swap the buffers of carried tensors."""
        # the last upload must be complete before its staging memory is overwritten
        _checked(self._cudart.cudaStreamSynchronize(self._stream))
        for name, array in varying.items():
            self._upload(name, array)
        if not self._engine.context.execute_async_v3(int(self._stream)):
            raise RuntimeError("TensorRT could not enqueue the step")
        for source, result in self._carry.items():
            self._buffers[source], self._buffers[result] = self._buffers[result], self._buffers[source]
            self._engine.context.set_tensor_address(source, self._buffers[source])
            self._engine.context.set_tensor_address(result, self._buffers[result])

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return the current value of a carried input, copied to the host."""
        return self._download(name)

    def read_output(self, name: str) -> np.ndarray[Any, Any]:
        """Return an output of the last step, copied to the host."""
        return self._download(name)

    def _download(self, name: str) -> np.ndarray[Any, Any]:
        staging = self._staging[name]
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(
            self._cudart.cudaMemcpyAsync(staging.ctypes.data, self._buffers[name], staging.nbytes, kind, self._stream)
        )
        _checked(self._cudart.cudaStreamSynchronize(self._stream))
        return staging.copy()

    def close(self) -> None:
        """Free buffers and stream; an error is raised only after trying all of them."""
        if self._stream is None:
            return
        cuda, stream, self._stream = self._cudart, self._stream, None
        self._staging.clear()
        results = [
            cuda.cudaStreamSynchronize(stream),
            *(cuda.cudaFree(address) for address in self._buffers.values()),
            *(cuda.cudaFreeHost(pointer) for pointer in self._pinned),
            cuda.cudaStreamDestroy(stream),
        ]
        self._buffers.clear()
        self._pinned.clear()
        for result in results:
            _checked(result)

    def __del__(self) -> None:
        """Free what the caller did not close."""
        self.close()


def _checked(result: tuple[Any, ...]) -> Any:
    """Unpack the result of a CUDA call; an error code becomes an exception."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"CUDA error {status.name}")
    return values[0] if values else None


def _allocated(result: tuple[Any, ...], size: int, memory: str, what: str) -> Any:
    """Unpack the result of an allocation; out of memory is not a bug."""
    if int(result[0]) == _OUT_OF_MEMORY:
        raise _no_room(size, memory, what)
    return _checked(result)


def _no_room(size: int, memory: str, what: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"There is not enough memory for {what}: another {size:,} bytes of {memory} are needed.",
        fix="Close other programs that use it, or build for a smaller batch or size.",
    )
