"""Runs TensorRT engines through cuda-python: steps allocate nothing, and their inputs are copied one step ahead."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from infid_engines.backends import Arrays, CarryingLoop, CheckedInputs
from infid_engines.errors import BackendUnavailableError, EngineFolderError
from infid_engines.manifest import TensorSpec

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@contextmanager
def on_gpu(cudart: Any, index: int) -> Iterator[None]:
    """Make a GPU the current one of this thread while the block runs.

    The previous one is restored: Python may free a loop in the middle of a call for another GPU, and the caller's own
    code may use CUDA on the same thread.

    Args:
        cudart: the module `cuda.bindings.runtime`.
        index: number of the GPU.
    """
    previous = _checked(cudart.cudaGetDevice())
    if previous == index:
        yield
        return
    _checked(cudart.cudaSetDevice(index))
    try:
        yield
    finally:
        _checked(cudart.cudaSetDevice(previous))


def _on_its_gpu(
    method: Callable[Concatenate[TensorRTLoop, Parameters], Result],
) -> Callable[Concatenate[TensorRTLoop, Parameters], Result]:
    """Run a method of a loop on the GPU of its engine, whatever the calling thread's current GPU is."""

    @wraps(method)
    def run(self: TensorRTLoop, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        with on_gpu(self._cudart, self._engine.gpu):
            return method(self, *arguments, **named)

    return run


class TensorRTEngine:
    """A deserialized engine with an execution context. Made with its GPU as the current one, see `on_gpu`.

    Args:
        trt: the library's module.
        runtime: kept alive as long as the engine.
        engine: ICudaEngine.
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        gpu: number of the GPU that it is on.

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
        gpu: int = 0,
    ) -> None:
        self.gpu = gpu
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
        self.checked = CheckedInputs(self.inputs)
        self.busy_seconds = 0.0

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Copy inputs to the device, run once, and copy all outputs back."""
        loop = TensorRTLoop(self, inputs, {}, {}, [{}])
        try:
            loop.step()
            return {name: loop.read(name) for name in self.outputs}
        finally:
            loop.close()

    def loop(self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays, varying: Iterable[Arrays]) -> TensorRTLoop:
        """Start a loop: all buffers are allocated here, and fixed inputs are copied once."""
        return TensorRTLoop(self, fixed, carry, initial, varying)

    @property
    def context(self) -> Any:
        """The IExecutionContext."""
        return self._context

    def close(self) -> None:
        """Free the context and the engine."""
        from cuda.bindings import runtime as cudart

        with on_gpu(cudart, self.gpu):
            self._context = self._engine = self._runtime = None


@dataclass
class _Buffer:
    """Device memory of a tensor, and page-locked host memory that is copied to or from it.

    Args:
        device: address on the device.
        host: the page-locked memory as an array.
    """

    device: int
    host: np.ndarray[Any, Any]


@dataclass
class _Slot:
    """One of two sets of the varying inputs: while a step reads one, the next step's values are copied to the other.

    Args:
        buffers: by name of the input.
        uploaded: event after the copies to the device.
        consumed: event after the step that reads them.
        graph: the CUDA graph of a step that reads them, once it is captured.
    """

    buffers: dict[str, _Buffer]
    uploaded: Any
    consumed: Any
    graph: Any = None


class TensorRTLoop(CarryingLoop):
    """See `StepLoop`. A carried tensor has two buffers, which are swapped at every step.

    Steps are queued on one stream. The varying inputs of the next step are copied on another one meanwhile, which
    hides the features of a template behind the computation. The host is at most three steps ahead of the device.

    TensorRT prepares for its shapes in the first step. The next two are captured as CUDA graphs, one for each set of
    buffers, and all later ones replay them: one call per step. An engine whose work cannot be captured is enqueued.

    Args: see `CarryingLoop`.

    Raises:
        InputError: an input is missing, unknown, mistyped or misshapen.
        BackendUnavailableError: GPU memory or page-locked host memory is too small for the buffers.
    """

    def __init__(
        self,
        engine: TensorRTEngine,
        fixed: Arrays,
        carry: Mapping[str, str],
        initial: Arrays,
        varying: Iterable[Arrays],
    ) -> None:
        self._frees: list[Callable[[], tuple[Any, ...]]] = []
        self._streams: list[Any] = []
        self._done, self._capturable = 0, True
        from cuda.bindings import runtime as cudart

        self._cudart, self._engine = cudart, engine
        super().__init__(engine, fixed, carry, initial, varying)
        try:
            self._prepare({**fixed, **initial}, self._next or {})
        except BaseException:
            with contextlib.suppress(RuntimeError):  # report the first error
                self.close()
            raise

    @_on_its_gpu
    def _prepare(self, first: Arrays, varying: Arrays) -> None:
        """Allocate all buffers, and copy the initial values and the first step's."""
        engine = self._engine
        self._compute, self._copies = self._stream(), self._stream()
        for name, array in {**first, **varying}.items():
            engine.context.set_input_shape(name, array.shape)
        buffers = {name: self._buffer(name, array.shape, engine.inputs[name].dtype) for name, array in first.items()}
        for name, spec in engine.outputs.items():
            buffers[name] = self._buffer(name, tuple(engine.context.get_tensor_shape(name)), spec.dtype)
        self._buffers = buffers
        self._slots = [
            _Slot(
                {name: self._buffer(name, each.shape, engine.inputs[name].dtype) for name, each in varying.items()},
                self._event(),
                self._event(),
            )
            for _ in range(2)
        ]
        for name, buffer in buffers.items():
            engine.context.set_tensor_address(name, buffer.device)
        for name, array in first.items():
            self._upload(buffers[name], array, self._compute)
        self._fill()

    def _stream(self) -> Any:
        stream = _checked(self._cudart.cudaStreamCreate())
        self._streams.append(stream)
        self._frees.append(lambda: self._cudart.cudaStreamDestroy(stream))
        return stream

    def _event(self) -> Any:
        event = _checked(self._cudart.cudaEventCreate())
        self._frees.append(lambda: self._cudart.cudaEventDestroy(event))
        return event

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: str) -> _Buffer:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        device = _allocated(self._cudart.cudaMalloc(max(size, 1)), size, "GPU memory", name)
        self._frees.append(lambda: self._cudart.cudaFree(device))
        pinned = _allocated(self._cudart.cudaMallocHost(max(size, 1)), size, "page-locked host memory", name)
        self._frees.append(lambda: self._cudart.cudaFreeHost(pinned))
        memory = (ctypes.c_byte * size).from_address(int(pinned))
        return _Buffer(device, np.frombuffer(memory, dtype).reshape(shape))

    def _upload(self, buffer: _Buffer, array: np.ndarray[Any, Any], stream: Any) -> None:
        if (array.shape, array.dtype) != (buffer.host.shape, buffer.host.dtype):  # copyto would broadcast and convert
            raise RuntimeError("an input of a step differs in shape or type from that of the first step")
        np.copyto(buffer.host, array)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _checked(self._cudart.cudaMemcpyAsync(buffer.device, buffer.host.ctypes.data, buffer.host.nbytes, kind, stream))

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call the library, and count the time."""
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self._engine.busy_seconds += time.perf_counter() - started

    def _fill(self) -> None:
        """Copy the varying inputs of the next step to the slot that no step needs any more, if there is a next step."""
        if self._next is None:
            return
        slot, cudart = self._slots[0], self._cudart
        _checked(self._timed(cudart.cudaEventSynchronize, slot.uploaded))  # the host memory is free again
        _checked(cudart.cudaStreamWaitEvent(self._copies, slot.consumed, 0))  # and then the device memory
        for name, buffer in slot.buffers.items():
            self._upload(buffer, self._next[name], self._copies)
        _checked(cudart.cudaEventRecord(slot.uploaded, self._copies))

    def _enqueue(self, slot: _Slot) -> bool:
        """Queue a run on the buffers of this step, and return whether TensorRT accepted it."""
        context = self._engine.context
        for name, buffer in slot.buffers.items():
            context.set_tensor_address(name, buffer.device)
        for pair in self._carry.items():
            for name in pair:
                context.set_tensor_address(name, self._buffers[name].device)
        return bool(self._timed(context.execute_async_v3, int(self._compute)))

    def _captured(self, slot: _Slot) -> Any:
        """Return a run on the buffers of this step as a CUDA graph; None if it cannot be captured."""
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(cudart.cudaStreamBeginCapture(self._compute, mode))
        queued = self._enqueue(slot)
        status, graph = cudart.cudaStreamEndCapture(self._compute)
        launched = None
        if int(status) == 0:
            try:
                launched = _checked(cudart.cudaGraphInstantiate(graph, 0)) if queued else None
            finally:
                _checked(cudart.cudaGraphDestroy(graph))
        if launched is None:
            self._capturable = False
        else:
            self._frees.append(lambda: cudart.cudaGraphExecDestroy(launched))
        return launched

    @_on_its_gpu
    def step(self) -> None:
        """Queue a run and the copies for the next one, and swap the buffers of carried tensors."""
        self._varying_now()
        slot, cudart = self._slots[0], self._cudart
        _checked(cudart.cudaStreamWaitEvent(self._compute, slot.uploaded, 0))
        if slot.graph is None and self._done and self._capturable:
            slot.graph = self._captured(slot)
        if slot.graph is not None:
            _checked(self._timed(cudart.cudaGraphLaunch, slot.graph, self._compute))
        elif not self._enqueue(slot):
            raise RuntimeError("TensorRT could not enqueue the step")
        _checked(cudart.cudaEventRecord(slot.consumed, self._compute))
        for source, result in self._carry.items():
            self._buffers[source], self._buffers[result] = self._buffers[result], self._buffers[source]
        self._done += 1
        self._slots.reverse()
        self._advance()
        self._fill()

    @_on_its_gpu
    def read(self, output: str) -> np.ndarray[Any, Any]:
        """Return an output of the last step, copied to the host."""
        buffer = self._buffers[self._became.get(output, output)]
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _checked(
            self._cudart.cudaMemcpyAsync(
                buffer.host.ctypes.data, buffer.device, buffer.host.nbytes, kind, self._compute
            )
        )
        _checked(self._timed(self._cudart.cudaStreamSynchronize, self._compute))
        return buffer.host.copy()

    def close(self) -> None:
        """Free buffers, events and streams; an error is raised only after trying all of them."""
        if self._streams or self._frees:
            self._free()

    @_on_its_gpu
    def _free(self) -> None:
        streams, frees = self._streams, self._frees
        self._streams, self._frees, self._buffers, self._slots = [], [], {}, []
        results = [self._cudart.cudaStreamSynchronize(stream) for stream in streams]
        for result in [*results, *(free() for free in reversed(frees))]:
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
