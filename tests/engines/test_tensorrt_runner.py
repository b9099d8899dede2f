from __future__ import annotations

import ctypes
import gc
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infid_engines import gpu as gpu_module
from infid_engines.device import Device
from infid_engines.errors import BackendUnavailableError, EngineFolderError, InputError
from infid_engines.manifest import TensorSpec
from infid_engines.tensorrt_backend import TensorRTBackend
from infid_engines.tensorrt_runner import TensorRTEngine

SHAPE = (4, 1000)
INPUTS = (TensorSpec("x", "float32", SHAPE), TensorSpec("y", "float32", SHAPE))
OUTPUTS = (TensorSpec("next", "float32", SHAPE), TensorSpec("seen", "float32", SHAPE))
X = np.ones(SHAPE, np.float32)


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700


class FakeCuda:
    """Host memory in place of device memory, and streams that run as late, or as early, as their order allows.

    Args:
        room: bytes of device memory, and of page-locked memory.
        eager: the stream that runs its work at once, unless it waits for an event; the others run when somebody waits.
        failing: statuses by call.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, room: int = 1 << 20, eager: int | None = None, **failing: Status) -> None:
        self.room, self.eager, self.failing = room, eager, failing
        self.memory: dict[str, dict[int, Any]] = {"device": {}, "host": {}}
        self.queues: dict[int, list[Callable[[], object]]] = {}
        self.events: dict[int, int] = {}  # how often each was recorded
        self.reached: dict[int, int] = {}  # and how often its stream has come to it
        self.owner: dict[int, int] = {}
        self.capture: list[Callable[[], object]] | None = None
        self.graphs: dict[int, list[Callable[[], object]]] = {}
        self.launches: list[int] = []
        self.current = threading.local()  # the runtime keeps the current GPU of each thread
        self.used: set[int] = set()  # the GPUs that were current at a call

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and name not in ("cudaGetDevice", "cudaSetDevice"):
            self.used.add(self.cudaGetDevice()[1])
        return super().__getattribute__(name)

    def cudaGetDevice(self) -> tuple[Status, int]:
        return Status.cudaSuccess, getattr(self.current, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Status]:
        self.current.device = device
        return (Status.cudaSuccess,)

    @property
    def held(self) -> int:
        return len(self.queues) + len(self.events) + len(self.graphs) + sum(map(len, self.memory.values()))

    def _status(self, call: str) -> Status:
        return self.failing.get(call, Status.cudaSuccess)

    def _allocate(self, where: str, size: int) -> tuple[Status, int]:
        blocks = self.memory[where]
        if sum(map(ctypes.sizeof, blocks.values())) + size > self.room:
            return Status.cudaErrorMemoryAllocation, 0
        block = (ctypes.c_byte * size)(*[77] * size)  # not zeros: what is read before it is written shows
        blocks[ctypes.addressof(block)] = block
        return Status.cudaSuccess, ctypes.addressof(block)

    def queue(self, stream: int, work: Callable[[], object]) -> tuple[Status]:
        if self.capture is not None:
            self.capture.append(work)
            return (Status.cudaSuccess,)
        self.queues[stream].append(work)
        if stream == self.eager:
            self.drain(stream)
        return (Status.cudaSuccess,)

    def drain(self, stream: int) -> None:
        queue = self.queues[stream]
        while queue:
            queue.pop(0)()

    def cudaStreamCreate(self) -> tuple[Status, int]:
        if (status := self._status("cudaStreamCreate")) == Status.cudaSuccess:
            self.queues[len(self.queues) + 1] = []
        return status, len(self.queues)

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        assert not self.queues.pop(stream)
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        self.drain(stream)
        return (self._status("cudaStreamSynchronize"),)

    def cudaEventCreate(self) -> tuple[Status, int]:
        event = len(self.events) + 1
        self.events[event] = self.reached[event] = 0
        return Status.cudaSuccess, event

    def cudaEventDestroy(self, event: int) -> tuple[Status]:
        del self.events[event]
        return (Status.cudaSuccess,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Status]:
        self.events[event] += 1
        self.owner[event], number = stream, self.events[event]
        return self.queue(stream, lambda: self.reached.update({event: number}))

    def _wait(self, event: int, number: int) -> None:
        while self.reached[event] < number:
            self.queues[self.owner[event]].pop(0)()

    def cudaEventSynchronize(self, event: int) -> tuple[Status]:
        self._wait(event, self.events[event])
        return (Status.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Status]:
        number = self.events[event]
        return self.queue(stream, lambda: self._wait(event, number))

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Status, int]:
        return self._allocate("host", size * (2 if "host" in self.failing else 1))

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.memory["device"][address]
        return (Status.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[Status]:
        del self.memory["host"][address]
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        assert (self.capture, mode) == (None, 1)
        self.capture = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, int]:
        assert self.capture is not None
        work, self.capture, status = self.capture, None, self._status("cudaStreamEndCapture")
        if status == Status.cudaSuccess:
            self.graphs[id(work)] = work
        return status, id(work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Status, int]:
        self.graphs[-graph] = self.graphs[graph]
        return Status.cudaSuccess, -graph

    def cudaGraphDestroy(self, graph: int) -> tuple[Status]:
        del self.graphs[graph]
        return (Status.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Status]:
        self.launches.append(graph)
        for work in self.graphs[graph]:
            self.queue(stream, work)
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        return self.queue(stream, lambda: ctypes.memmove(target, source, size))


class FakeContext:
    """Computes next = 2x + y and seen = y, on the addresses at the time of the call."""

    shape: tuple[int, ...] = SHAPE

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.addresses: dict[str, int] = {}

    def __del__(self) -> None:
        self.cuda.used.add(self.cuda.cudaGetDevice()[1])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        pass

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.cuda.used.add(self.cuda.cudaGetDevice()[1])
        x, y, result, seen = (
            np.frombuffer((ctypes.c_byte * (4 * math.prod(self.shape))).from_address(self.addresses[name]), np.float32)
            for name in ("x", "y", "next", "seen")
        )

        def compute() -> None:
            result[:], seen[:] = 2 * x + y, y

        self.cuda.queue(stream, compute)
        return True


def engine_on(
    monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, inputs: tuple[TensorSpec, ...] = INPUTS, gpu: int = 0
) -> TensorRTEngine:
    """An engine on the fake device."""
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    names = [spec.name for spec in (*INPUTS, *OUTPUTS)]
    engine = SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda index: names[index],
        create_execution_context=lambda: FakeContext(cuda),
    )
    return TensorRTEngine(None, None, engine, inputs, OUTPUTS, gpu)


@pytest.mark.parametrize("eager", [None, 1, 2], ids=["as late as possible", "computes at once", "copies at once"])
def test_it_runs_and_loops_and_frees_everything(monkeypatch, eager):
    cuda = FakeCuda(eager=eager)
    engine = engine_on(monkeypatch, cuda)
    assert {name: float(each[0, 0]) for name, each in engine.run({"x": X, "y": 5 * X}).items()} == {
        "next": 7.0, "seen": 5.0,
    }  # fmt: skip
    assert cuda.held == 0
    steps = 7
    loop = engine.loop(
        {}, {"x": "next"}, {"x": X}, ({"y": np.full(SHAPE, index, np.float32)} for index in range(steps))
    )
    expected = X
    for index in range(steps):
        loop.step()
        expected = 2 * expected + index
        if index in (2, 5):
            np.testing.assert_array_equal(loop.read("next"), expected)
            np.testing.assert_array_equal(loop.read("seen"), index * X)
    np.testing.assert_array_equal(loop.read("next"), expected)
    with pytest.raises(RuntimeError, match="no further step"):
        loop.step()
    assert cuda.held > 0
    odd, even = cuda.launches[:2]  # the first step is enqueued, the others replay one of two graphs
    assert odd != even
    assert cuda.launches == [odd, even] * 3
    loop.close()
    loop.close()
    assert cuda.held == 0


@pytest.mark.parametrize("refusing", ["TensorRT", "CUDA"])
def test_what_cannot_be_captured_is_enqueued(monkeypatch, refusing):
    cuda = FakeCuda(**({"cudaStreamEndCapture": Status.cudaErrorIllegalAddress} if refusing == "CUDA" else {}))
    engine = engine_on(monkeypatch, cuda)
    enqueue, asked = FakeContext.execute_async_v3, []

    def execute(self: FakeContext, stream: int) -> bool:
        asked.append(cuda.capture is not None)
        return enqueue(self, stream) and not (cuda.capture is not None and refusing == "TensorRT")

    monkeypatch.setattr(FakeContext, "execute_async_v3", execute)
    loop = engine.loop({}, {"x": "next"}, {"x": X}, [{"y": X}] * 4)
    for _ in range(4):
        loop.step()
    np.testing.assert_array_equal(loop.read("next"), 31 * X)
    assert asked == [False, True, False, False, False]
    loop.close()
    assert (cuda.held, cuda.launches) == (0, [])


def test_the_next_inputs_are_copied_while_a_step_computes(monkeypatch):
    cuda = FakeCuda(eager=2)
    loop = engine_on(monkeypatch, cuda).loop({}, {"x": "next"}, {"x": X}, [{"y": X}, {"y": 3 * X}, {"y": X}])
    loop.step()
    assert cuda.queues[1]  # the first step has not run
    copied = [np.frombuffer(block, np.float32) for block in cuda.memory["device"].values()]
    assert any((each == 3).all() for each in copied)
    loop.close()


@pytest.mark.parametrize("gpu", [0, 1])
@pytest.mark.parametrize("own", [0, 1], ids=["caller on the first", "caller on the second"])
def test_every_call_is_for_the_gpu_of_the_engine(monkeypatch, gpu, own):
    cuda = FakeCuda()
    engine = engine_on(monkeypatch, cuda, gpu=gpu)
    places = []

    def in_a_thread_of_its_own(call):
        def work():
            cuda.cudaSetDevice(own)
            call()
            places.append(cuda.cudaGetDevice()[1])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    loops = []
    in_a_thread_of_its_own(lambda: loops.append(engine.loop({}, {"x": "next"}, {"x": X}, [{"y": X}] * 3)))
    for _ in range(3):
        in_a_thread_of_its_own(loops[0].step)
    in_a_thread_of_its_own(lambda: np.testing.assert_array_equal(loops[0].read("next"), 15 * X))
    in_a_thread_of_its_own(loops[0].close)
    in_a_thread_of_its_own(lambda: engine.run({"x": X, "y": X}))
    in_a_thread_of_its_own(engine.close)
    assert cuda.used == {gpu}
    assert places == [own] * 8
    assert cuda.held == 0


def test_an_engine_is_loaded_on_its_gpu(monkeypatch, tmp_path):
    cuda, backend = FakeCuda(), TensorRTBackend()
    made = engine_on(monkeypatch, cuda)._engine
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setattr(gpu_module, "architectures", lambda: ("sm_90", "sm_89"))
    contents: list[bytes] = []

    class Runtime:
        def __init__(self, logger: str) -> None:
            assert logger == "only errors"
            cuda.used.add(cuda.cudaGetDevice()[1])

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            cuda.used.add(cuda.cudaGetDevice()[1])
            contents.append(content)
            return made if content == b"an engine" else None

    def logger(severity: int) -> str:
        return {2: "only errors"}[severity]

    logger.ERROR = 2
    monkeypatch.setattr(backend, "_library", lambda: SimpleNamespace(Runtime=Runtime, Logger=logger, __version__="1"))
    gc.collect()
    cuda.used.clear()
    (tmp_path / "engine").write_bytes(b"an engine")
    engine = backend.load(tmp_path / "engine", INPUTS, OUTPUTS, Device("cuda", 1))
    np.testing.assert_array_equal(engine.run({"x": X, "y": X})["next"], 3 * X)
    engine.close()
    assert (cuda.used, cuda.cudaGetDevice()[1]) == ({1}, 0)
    (tmp_path / "engine").write_bytes(b"of another GPU")
    with pytest.raises(EngineFolderError, match=r"not for this GPU \(sm_89\)"):
        backend.load(tmp_path / "engine", INPUTS, OUTPUTS, Device("cuda", 1))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # importing it fails
    with pytest.raises(BackendUnavailableError, match="tensorrt engines need cuda-python") as caught:
        backend.load(tmp_path / "engine", INPUTS, OUTPUTS, Device("cuda", 1))
    assert caught.value.fix == 'pip install "infid-export[tensorrt]"'


def test_a_loop_that_python_frees_leaves_the_current_gpu_alone(monkeypatch):
    cuda = FakeCuda()
    engine = engine_on(monkeypatch, cuda, gpu=1)
    loop = engine.loop({}, {"x": "next"}, {"x": X}, [{"y": X}])
    del loop
    gc.collect()
    assert (cuda.held, cuda.used, cuda.cudaGetDevice()[1]) == (0, {1}, 0)


@pytest.mark.parametrize("call", ["_enqueue", "_upload"])
def test_the_current_gpu_is_restored_after_an_error(monkeypatch, call):
    cuda = FakeCuda()
    loop = engine_on(monkeypatch, cuda, gpu=1).loop({}, {"x": "next"}, {"x": X}, [{"y": X}] * 3)
    monkeypatch.setattr(loop, call, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.step()
    assert cuda.cudaGetDevice()[1] == 0
    loop.close()


@pytest.mark.parametrize("columns", [500, 1000, 2000])
def test_varying_inputs_may_have_any_size_of_their_range(monkeypatch, columns):
    cuda = FakeCuda()
    inputs = tuple(replace(spec, shape=(4, [500, 1000, 2000])) for spec in INPUTS)
    engine = engine_on(monkeypatch, cuda, inputs)
    x = np.ones((4, columns), np.float32)
    monkeypatch.setattr(FakeContext, "shape", x.shape)
    loop = engine.loop({}, {"x": "next"}, {"x": x}, [{"y": x}, {"y": 3 * x}])
    for _ in range(2):
        loop.step()
    np.testing.assert_array_equal(loop.read("next"), 9 * x)
    loop.close()
    with pytest.raises(InputError, match=r"Input y must be float32 \[4, \[500, 1000, 2000\]\]"):
        engine.loop({}, {"x": "next"}, {"x": x}, [{"y": np.ones((4, 400), np.float32)}])
    with pytest.raises(InputError, match="lacks input y"):
        engine.loop({}, {"x": "next"}, {"x": x}, [{}])
    assert cuda.held == 0


@pytest.mark.parametrize("later", [X[:, :1], X.astype(np.float64)])
def test_a_later_step_must_be_like_the_first(monkeypatch, later):
    loop = engine_on(monkeypatch, FakeCuda()).loop({}, {"x": "next"}, {"x": X}, [{"y": X}, {"y": later}])
    with pytest.raises(RuntimeError, match="differs in shape or type"):
        loop.step()
    loop.close()


@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        (FakeCuda(room=20_000), "not enough memory for next: another 16,000 bytes of GPU memory"),
        (
            FakeCuda(room=20_000, host=Status.cudaErrorMemoryAllocation),
            "not enough memory for x: another 16,000 bytes of page-locked",
        ),
    ],
    ids=["device", "host"],
)
def test_too_little_memory_is_a_sentence_with_the_size(monkeypatch, cuda, message):
    with pytest.raises(BackendUnavailableError, match=message):
        engine_on(monkeypatch, cuda).loop({}, {"x": "next"}, {"x": X}, [{"y": X}])
    assert cuda.held == 0


def test_too_little_memory_for_the_context_is_a_sentence_too():
    engine = SimpleNamespace(create_execution_context=lambda: None, device_memory_size_v2=1_234_500_000)
    with pytest.raises(BackendUnavailableError, match="1,234,500,000 bytes of GPU memory"):
        TensorRTEngine(None, None, engine, INPUTS, OUTPUTS)


@pytest.mark.parametrize("call", ["cudaStreamCreate", "cudaStreamSynchronize"])
def test_a_constructor_that_fails_raises_its_own_error_and_no_other(monkeypatch, call):
    cuda = FakeCuda(room=20_000, **{call: Status.cudaErrorIllegalAddress})
    engine = engine_on(monkeypatch, cuda)
    with pytest.raises((RuntimeError, BackendUnavailableError)) as caught:
        engine.loop({}, {"x": "next"}, {"x": X}, [{"y": X}])
    assert ("cudaErrorIllegalAddress" in str(caught.value)) == (call == "cudaStreamCreate")
    del caught
    gc.collect()  # an exception in __del__ fails the test
    assert cuda.held == 0


def test_a_failing_run_frees_its_buffers(monkeypatch):
    cuda = FakeCuda()
    engine = engine_on(monkeypatch, cuda)
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(RuntimeError, match="could not enqueue") as caught:
        engine.run({"x": X, "y": X})
    assert cuda.held == 0
    del caught
