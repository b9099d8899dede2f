from __future__ import annotations

import ctypes
import gc
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infid_engines.errors import BackendUnavailableError
from infid_engines.manifest import TensorSpec
from infid_engines.tensorrt_runner import TensorRTEngine

INPUTS = (TensorSpec("x", "float32", (4, 1000)),)
OUTPUTS = (TensorSpec("next", "float32", (4, 1000)),)
X = np.ones((4, 1000), np.float32)


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700


class FakeCuda:
    """Host memory in place of device memory; the calls named in `failing` return their status.

    Args:
        room: bytes of device memory, and of page-locked memory.
        failing: statuses by call.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, room: int = 1 << 20, **failing: Status) -> None:
        self.room, self.failing = room, failing
        self.streams: set[int] = set()
        self.memory: dict[str, dict[int, Any]] = {"device": {}, "host": {}}

    @property
    def held(self) -> int:
        return len(self.streams) + sum(map(len, self.memory.values()))

    def _status(self, call: str) -> Status:
        return self.failing.get(call, Status.cudaSuccess)

    def _allocate(self, where: str, size: int) -> tuple[Status, int]:
        blocks = self.memory[where]
        if sum(map(ctypes.sizeof, blocks.values())) + size > self.room:
            return Status.cudaErrorMemoryAllocation, 0
        block = (ctypes.c_byte * size)()
        blocks[ctypes.addressof(block)] = block
        return Status.cudaSuccess, ctypes.addressof(block)

    def cudaStreamCreate(self) -> tuple[Status, int]:
        if (status := self._status("cudaStreamCreate")) == Status.cudaSuccess:
            self.streams.add(7)
        return status, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        self.streams.remove(stream)
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        return (self._status("cudaStreamSynchronize"),)

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

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        ctypes.memmove(target, source, size)
        return (Status.cudaSuccess,)


class FakeContext:
    """Computes next = x + 1."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        pass

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return X.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        x, result = (
            np.frombuffer((ctypes.c_byte * X.nbytes).from_address(self.addresses[name]), np.float32)
            for name in ("x", "next")
        )
        result[:] = x + 1
        return True


def engine_on(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, context: FakeContext | None = None) -> TensorRTEngine:
    """An engine on the fake device."""
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda index: ("x", "next")[index],
        create_execution_context=lambda: context or FakeContext(),
    )
    return TensorRTEngine(None, None, engine, INPUTS, OUTPUTS)


def test_it_runs_and_loops_and_frees_everything(monkeypatch):
    cuda = FakeCuda()
    engine = engine_on(monkeypatch, cuda)
    np.testing.assert_array_equal(engine.run({"x": X})["next"], X + 1)
    loop = engine.loop({}, {"x": "next"}, {"x": X})
    for _ in range(3):
        loop.step({})
    np.testing.assert_array_equal(loop.read("x"), X + 3)
    assert cuda.held > 0
    loop.close()
    loop.close()
    assert cuda.held == 0


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
        engine_on(monkeypatch, cuda).loop({}, {"x": "next"}, {"x": X})
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
        engine.loop({}, {"x": "next"}, {"x": X})
    assert ("cudaErrorIllegalAddress" in str(caught.value)) == (call == "cudaStreamCreate")
    del caught
    gc.collect()  # an exception in __del__ fails the test
    assert cuda.held == 0


def test_a_failing_run_frees_its_buffers(monkeypatch):
    cuda, context = FakeCuda(), FakeContext()
    engine = engine_on(monkeypatch, cuda, context)
    monkeypatch.setattr(context, "execute_async_v3", lambda stream: False)
    with pytest.raises(RuntimeError, match="could not enqueue") as caught:
        engine.run({"x": X})
    assert cuda.held == 0
    del caught
