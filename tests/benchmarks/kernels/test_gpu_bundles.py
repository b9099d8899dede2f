"""The suite's bundles on a machine without a GPU: the driver's launches run in Triton's interpreter."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from suite_parts import MERGED, MIXED, TINY, FakeBench
from torch import Tensor

from benchmarks.kernels import bundles
from benchmarks.suite.bench import Bench
from benchmarks.suite.runner import Suite
from infid_engines import kernel_launch
from infid_engines.errors import BackendUnavailableError
from infid_engines.kernel_bundle import KernelBundle
from infid_engines.kernel_launch import Kernel
from infid_kernels import measure
from infid_kernels.compile import CompiledKernel
from infid_kernels.mean_shift import SPLITS, launch_mean_shift, launch_value_shift
from infid_kernels.operands import Operands
from infid_kernels.tuning import Configuration


class Driver:
    """Runs the driver's launches in the interpreter, from the addresses alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.launched: list[str] = []
        self.wrong = False
        driver = self

        def launch(kernel: Kernel, stream: int, pointers: dict[str, int], sizes: dict[str, int]) -> None:
            kernel.arguments(pointers, sizes)  # names, alignment and sizes
            kernel.grid(sizes)
            assert stream == 7
            driver.run(kernel.description["op"], pointers, sizes)

        monkeypatch.setattr(Kernel, "launch", launch)
        monkeypatch.setattr(bundles, "bundle_of", lambda *_: KernelBundle.load(folder))
        monkeypatch.setattr(Bench, "on_gpu", True)
        monkeypatch.setattr(FakeBench, "synchronize", lambda bench: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))

    def run(self, op: str, pointers: dict[str, int], sizes: dict[str, int]) -> None:
        self.launched.append(op)
        rows, heads = sizes["rows"], sizes["heads"]

        def at(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
            memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(pointers[name])
            return torch.frombuffer(memory, dtype=dtype).view(shape)

        def tokens(name: str, length: str) -> Tensor:
            return at(name, (rows, sizes[length], heads, 64), torch.float16).transpose(1, 2)

        if op == "value_shift":
            values = tokens("v_id", "identity_length"), tokens("v_t", "text_length")
            shift = launch_value_shift(*values, at("strength", (rows,)))
            at("shift_v", tuple(shift.shape)).copy_(shift)
            return
        identity = [tokens(name, "identity_length") for name in ("k_id", "v_id")]
        text = [tokens(name, "text_length") for name in ("k_t", "v_t")]
        if op == "mean_shift":
            for name, shift in zip(
                ("shift_k", "shift_v"), launch_mean_shift(*identity, *text, at("strength", (rows,))), strict=True
            ):
                at(name, tuple(shift.shape)).copy_(shift)
            return
        operands = Operands(tokens("q", "queries"), *identity, *text)
        out, tiles = tokens("out", "queries"), Configuration(32, 32, 4, 1)
        if op == MIXED.op:
            shifts = [at(name, (rows, heads, SPLITS, 64)) for name in ("shift_k", "shift_v")]
            measure.launch_mixed_attention(operands, (shifts[0], shifts[1]), 0.125, out, tiles, False)
        else:
            given = at("shift_v", (rows, heads, SPLITS, 64)), at("identity_strength", (rows,))
            measure.launch_merged_cross_attention(operands, *given, 0.125, out, tiles, False)
        if self.wrong:
            out[:, :, -1] = float("nan")


@pytest.mark.parametrize(
    ("name", "ops"), [("mixed-4096", ["mean_shift", MIXED.op]), ("merged-4096", ["value_shift", MERGED.op])]
)
def test_a_bundle_is_right_and_timed_next_to_torch(
    bench: FakeBench, monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path, name: str, ops: list[str]
) -> None:
    driver = Driver(monkeypatch, kernels_bundle)
    result = bundles.measure_bundle(name, bench)
    assert result["passed"] and result["relative_rms"] <= 1e-3
    assert driver.launched == ops * 3  # once to compare, then each of two sets
    assert all("machine code for sm_90" in kernel for kernel in result["kernels"])
    assert (result["torch"]["median"], result["driver"]["median"]) == (1.0, 2.0)


def test_a_wrong_bundle_decides_and_is_not_timed(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path
) -> None:
    items = [item for item in bundles.items(TINY) if item.name == "bundle merged-4096"]
    driver = Driver(monkeypatch, kernels_bundle)
    driver.wrong = True
    assert not suite.run(items)
    outcome = suite.document["items"]["bundle merged-4096"]
    assert outcome["state"] == "FAILED"
    assert "driver" not in outcome["result"]


def test_without_cuda_python_that_is_recorded(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path
) -> None:
    def missing() -> Any:
        raise BackendUnavailableError("Launching kernels needs cuda-python.", fix="pip install it")

    launch = Kernel.launch
    Driver(monkeypatch, kernels_bundle)
    monkeypatch.setattr(Kernel, "launch", launch)
    monkeypatch.setattr(kernel_launch, "_driver", missing)
    items = [item for item in bundles.items(TINY) if item.name == "bundle merged-4096"]
    assert suite.run(items)
    assert "needs cuda-python" in suite.document["items"]["bundle merged-4096"]["why"]


def test_a_bundle_of_the_tables_own_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bench: FakeBench
) -> None:
    """A bundle holds plain forms only."""
    chosen = Configuration(64, 128, 4, 2)
    asked: dict[str, Any] = {}

    def compile_kernel(op: str, architecture: str, d: int, tiles: Configuration, even_n: bool) -> CompiledKernel:
        asked[op] = (architecture, d, tiles, even_n)
        launch = {
            "op": op, "architecture": architecture, "ptx_target": "sm_90a", "dtype": "float16", "head_size": d,
            "configuration": tiles.to_dict(), "constants": {"EVEN_N": even_n, "BLOCK_N": tiles.block_n}, "grid": [],
            "arguments": [], "shared_bytes": 0,
            "multiples": {"TEXT_LENGTH": tiles.block_n} if even_n else {},
        }  # fmt: skip
        return CompiledKernel("ptx", b"cubin", launch)

    monkeypatch.setattr(bundles, "compile_kernel", compile_kernel)
    choices = {"plain": (chosen, True)}
    monkeypatch.setattr(bundles, "choose_kernel", lambda *call: choices[call[-1]])
    monkeypatch.setattr(bundles, "architecture_of", lambda device: "sm_90")
    made = bundles.bundle_of(MIXED, bench.device, tmp_path / "bundle")
    assert asked[MIXED.op] == ("sm_90", 64, chosen, True)
    assert made.find(MIXED.op, "sm_90", "float16", 64, (128, 256), 4096).description["queries"] == [0]
    assert made.find("mean_shift", "sm_90", "float16", 64, (77, 77)).form == "cubin"
