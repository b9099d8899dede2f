"""The GPUs that CUDA finds, with a stand-in for its driver."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from infid_engines import gpu


class Driver:
    """CUDA's driver on a machine with two GPUs. Handles are not numbers: they count from 40.

    Args:
        failing: the functions that return an error.
    """

    capabilities = ((9, 0), (8, 9))

    def __init__(self, *failing: str) -> None:
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name in self._failing:
                return 100
            getattr(self, f"_{name}")(*arguments)
            return 0

        return call

    def _cuInit(self, flags: int) -> None:
        assert flags == 0

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.capabilities)

    def _cuDeviceGet(self, handle: Any, index: int) -> None:
        handle._obj.value = 40 + index

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> None:
        value._obj.value = self.capabilities[handle.value - 40][attribute - 75]

    def _cuDeviceGetPCIBusId(self, address: Any, length: int, handle: ctypes.c_int) -> None:
        assert length == len(address)
        address.value = b"0000:%02d:00.0" % handle.value


def test_gpus_are_those_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: Driver())
    assert gpu.architectures() == ("sm_90", "sm_89")
    assert [gpu.present_architecture(index) for index in range(3)] == ["sm_90", "sm_89", None]
    assert [gpu.pci_address(index) for index in range(3)] == [b"0000:40:00.0", b"0000:41:00.0", None]


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGetCount"])
def test_a_driver_without_gpus_finds_none(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: Driver(failing))
    assert (gpu.architectures(), gpu.present_architecture(), gpu.pci_address(0)) == ((), None, None)


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", "no-such-library.so")
    assert (gpu.architectures(), gpu.present_architecture(), gpu.pci_address(0)) == ((), None, None)
