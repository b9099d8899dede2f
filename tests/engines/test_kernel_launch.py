from __future__ import annotations

import ctypes
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bundle_parts import compiled
from torch import Tensor

from infid_engines import kernel_launch
from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.kernel_bundle import KernelBundle
from infid_engines.kernel_launch import Kernel, PackedArguments
from infid_kernels import (
    arguments,
    mean_shift,
    merged_cross_attention,
    merged_cross_attention_triton,
    mixed_attention,
    mixed_attention_triton,
    tuning,
    variants,
)
from infid_kernels.mixed_attention_triton import mixed_attention_reference

KERNELS = ("mean_shift", "value_shift", *tuning.OPS)
MODULES = [mean_shift, merged_cross_attention_triton, mixed_attention_triton]
SIZES = {"rows": 2, "heads": 10, "queries": 1000, "identity_length": 128, "text_length": 64}
POINTERS = {"q": 4096, "out": 8192}


def test_the_limits_are_those_of_the_kernels() -> None:
    assert kernel_launch._MAX_TOKEN_STRIDE == arguments._MAX_TOKEN_STRIDE
    assert kernel_launch._DEFAULT_SHARED == variants.DEFAULT_SHARED


@pytest.fixture(scope="module")
def bundle(kernels_bundle: Path) -> KernelBundle:
    return KernelBundle.load(kernels_bundle)


def unpacked(packed: PackedArguments, description: Mapping[str, Any]) -> list[int]:
    """Read the parameters as the driver does: through the array of addresses, each with the length of its type."""
    types = [ctypes.c_int32 if each["type"] == "i32" else ctypes.c_uint64 for each in description["arguments"]]
    types += [ctypes.c_uint64] * description["scratch_pointers"]
    assert [type(value) for value in packed.values] == types
    assert len(packed.array) == len(types)
    addresses = (ctypes.c_uint64 * len(types)).from_address(packed.address)
    return [kind.from_address(address).value for kind, address in zip(types, addresses, strict=True)]


class Launches:
    """Replaces the kernels' launch, and records the arguments that Triton would get."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}
        for module in MODULES:
            monkeypatch.setattr(module, "launchable", self._launchable)

    def _launchable(self, kernel: Any, tensor: Tensor) -> Any:
        recorder = self

        class Launcher:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                def call(*arguments: Any, **options: Any) -> None:
                    named = dict(zip(kernel.arg_names, arguments, strict=False))
                    recorder.calls[kernel.__name__.removesuffix("_kernel")] = (grid, named | options)

                return call

        return Launcher()


def laid_out(shape: tuple[int, int, int], layout: str) -> Tensor:
    """Return `[B, H, N, 64]`, laid out as a view of a `[B, N, H·64]` projection or differently."""
    rows, heads, length = shape
    if layout == "heads":
        return torch.empty(rows, heads, length, 64, dtype=torch.float16)
    if layout == "sliced":
        return torch.empty(rows, length, 3, heads, 64, dtype=torch.float16)[:, :, 1].transpose(1, 2)
    return torch.empty(rows, length, heads, 64, dtype=torch.float16).transpose(1, 2)


@pytest.mark.parametrize("layout", ["packed", "heads", "sliced"])
def test_a_launch_is_the_triton_launchers_own(
    bundle: KernelBundle, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """For random calls, the driver gets the same grid, order, addresses, lengths and strides as Triton."""
    launches, draw = Launches(monkeypatch), random.Random(3)
    compared = dict.fromkeys(KERNELS, 0)
    for _ in range(30):
        rows, heads, queries = draw.randint(1, 3), draw.randint(1, 12), draw.choice((1, 128, 500, 512, 600))
        lengths = [draw.randint(1, 4) * 128, draw.randint(1, 4) * 128]
        if draw.random() < 0.5:
            lengths = [draw.randint(1, 400), draw.randint(1, 400)]
        q = laid_out((rows, heads, queries), layout)
        k_id, v_id = (laid_out((rows, heads, lengths[0]), layout) for _ in range(2))
        k_t, v_t = (laid_out((rows, heads, lengths[1]), layout) for _ in range(2))
        sizes = {"rows": rows, "heads": heads, "queries": queries, "identity_length": lengths[0],
                 "text_length": lengths[1]}  # fmt: skip
        kernels = {op: bundle.find(op, "sm_90", "float16", 64, lengths) for op in compared}
        for op, choose in zip(tuning.OPS, ("choose", "choose_kernel"), strict=True):
            tiles = tuning.Configuration(**kernels[op].description["configuration"])
            even_n = kernels[op].description["constants"]["EVEN_N"]
            module = import_module(f"infid_kernels.{op}_triton")
            monkeypatch.setattr(module, choose, lambda *_, chosen=(tiles, even_n): chosen)
        mixed_attention(q, k_id, v_id, k_t, v_t, 1.0)
        merged_cross_attention(q, k_t, v_t, k_id, v_id, 1.0, 1.0)
        for op, kernel in kernels.items():
            grid, given = launches.calls[op]
            constants = kernel.description["constants"]
            expected = {name: value for name, value in given.items() if name not in constants}
            pointers = {name: value.data_ptr() for name, value in expected.items() if isinstance(value, Tensor)}
            strides = {name: value for name, value in expected.items() if name.startswith("stride_")}
            # the strides of a packed tensor are in the description
            packed = kernel.arguments(pointers, sizes, None if layout == "packed" else strides)
            values = [pointers.get(name, value) for name, value in expected.items() if name in types_of(kernel)]
            assert list(types_of(kernel)) == [name for name in expected if name in types_of(kernel)]
            assert unpacked(packed, kernel.description) == [*values, 0, 0]
            assert kernel.grid(sizes) == (*grid, 1)
            assert {name: given[name] for name in constants} == pytest.approx(constants)
            assert kernel.description["block"] == [32 * given["num_warps"], 1, 1]
            compared[op] += 1
    assert min(compared.values()) == 30


def types_of(kernel: Kernel) -> dict[str, str]:
    return {each["name"]: each["type"] for each in kernel.description["arguments"]}


def test_no_person_needs_no_keys(bundle: KernelBundle) -> None:
    kernel = bundle.find("mixed_attention", "sm_90", "float16", 64, (0, 77))
    names = [name for name, kind in types_of(kernel).items() if kind != "i32"]
    pointers = {name: 0 if name in ("k_id", "v_id") else 4096 for name in names}
    sizes = SIZES | {"identity_length": 0, "text_length": 77}
    found = dict(zip(types_of(kernel), unpacked(kernel.arguments(pointers, sizes), kernel.description), strict=False))
    assert (found["k_id"], found["k_t"], found["identity_length"]) == (0, 4096, 0)
    with pytest.raises(InputError, match="k_id must be a device address, got 0"):
        kernel.arguments(pointers, sizes | {"identity_length": 1})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "address": ({"pointers": POINTERS | {"q": 4104}}, "q must be a multiple of 16 bytes, got 4104"),
    "null": ({"pointers": POINTERS | {"out": 0}}, "out must be a device address, got 0"),
    "missing pointer": ({"pointers": {"q": 4096}}, "mixed_attention lacks the pointer out"),
    "unknown pointer": ({"pointers": POINTERS | {"k": 16}}, "mixed_attention has no pointer k"),
    "stride": ({"strides": {"stride_qn": 641}}, "stride_qn must be a multiple of 16 elements, got 641"),
    "unknown stride": ({"strides": {"stride_qm": 640}}, "mixed_attention has no stride stride_qm"),
    "negative stride": ({"strides": {"stride_qn": -640}}, "stride_qn must be 0 to 16777215, got -640"),
    "large stride": ({"strides": {"stride_qn": 2**24}}, "stride_qn must be 0 to 16777215, got 16777216"),
    "large size": ({"sizes": SIZES | {"text_length": 2**31}}, "text_length must be 0 to 2147483647, got 2147483648"),
    "missing size": ({"sizes": {"rows": 1}}, "mixed_attention needs the size 'heads'; given: rows"),
    "no queries": ({"sizes": SIZES | {"queries": 0}}, "queries must be at least 1, got 0"),
    "no text": ({"sizes": SIZES | {"text_length": 0}}, "text_length must be at least 1, got 0"),
    "lengths": ({"sizes": SIZES | {"text_length": 77}}, "takes full blocks of 64 keys, but text_length is 77"),
    "grid": ({"sizes": SIZES | {"rows": 6554}}, "1 to 65535 blocks along y, but these sizes give 65540"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_argument_is_named(what: str) -> None:
    change, message = BAD[what]
    kernel = Kernel(compiled().launch, b"", "cubin")
    given = {"pointers": POINTERS, "sizes": SIZES} | change
    with pytest.raises(InputError, match=re.escape(message)):
        kernel.launch(0, **given)


class FakeDriver:
    """Records the calls, and answers like NVIDIA's driver."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self, rejected: str = "", context: int = 7) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._rejected, self._context = rejected, context

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name == self._rejected:
                return (Status(209, "CUDA_ERROR_NO_BINARY_FOR_GPU"), None)
            results = {
                "cuCtxGetCurrent": self._context,
                "cuModuleLoadData": "module",
                "cuModuleGetFunction": "function",
            }
            return (Status(0, "CUDA_SUCCESS"), results[name]) if name in results else (Status(0, "CUDA_SUCCESS"),)

        return call


class Status(int):
    def __new__(cls, value: int, name: str) -> Status:
        made = super().__new__(cls, value)
        made.name = name  # type: ignore[attr-defined]
        return made


@pytest.mark.parametrize(("shared", "form"), [(49152, "cubin"), (114688, "cubin"), (49152, "ptx")])
def test_the_driver_is_asked_for_the_kernel_once_and_for_its_memory(
    monkeypatch: pytest.MonkeyPatch, shared: int, form: Any
) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(kernel_launch, "_driver", lambda: driver)
    kernel = Kernel(compiled(shared=shared).launch, b"code", form)
    kernel.launch(5, POINTERS, SIZES)
    kernel.launch(5, POINTERS, SIZES)
    first = [
        ("cuCtxGetCurrent",),
        ("cuModuleLoadData", b"code\0" if form == "ptx" else b"code"),
        ("cuModuleGetFunction", "module", b"mixed_attention_kernel"),
    ]
    asked = [("cuFuncSetAttribute", "function", 8, shared)] if shared > 49152 else []
    *before, launch, again, second = driver.calls
    assert before == first + asked
    assert launch[:9] == ("cuLaunchKernel", "function", 8, 20, 1, 128, 1, 1, shared)
    assert launch[9] == 5
    assert launch[11] == 0
    assert again == ("cuCtxGetCurrent",)
    assert second[:10] == launch[:10]


def test_what_the_driver_rejects_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(compiled().launch, b"code", "cubin", "mixed: machine code for sm_80")
    monkeypatch.setattr(kernel_launch, "_driver", lambda: FakeDriver("cuModuleLoadData"))
    with pytest.raises(BackendUnavailableError, match=r"sm_80 could not be loaded: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        kernel.launch(0, POINTERS, SIZES)
    monkeypatch.setattr(kernel_launch, "_driver", lambda: FakeDriver(context=0))
    with pytest.raises(BackendUnavailableError, match="No CUDA context is current"):
        kernel.launch(0, POINTERS, SIZES)


def test_a_missing_library_or_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(compiled().launch, b"code", "cubin")
    if not Path("/dev/nvidiactl").exists():
        pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
        with pytest.raises(BackendUnavailableError, match="NVIDIA's driver cannot be used"):
            kernel.launch(0, POINTERS, SIZES)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailableError) as error:
        kernel.launch(0, POINTERS, SIZES)
    assert error.value.fix == 'pip install "cuda-python>=13"'


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [(500, 1024, 1024), (500, 261, 77), (77, 0, 77)], ids=str)
@pytest.mark.parametrize("shared_limit", [None, 49152])
def test_kernels_run_through_the_driver(
    tmp_path_factory: pytest.TempPathFactory, lengths: tuple[int, int, int], shared_limit: int | None
) -> None:
    device = torch.device("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    target = tuning.nearest(f"sm_{major}{minor}")
    folder = tmp_path_factory.getbasetemp() / f"bundle-{target}"
    if not folder.exists():
        command = [sys.executable, "-m", "infid_export", "compile-kernels", "--target", target, "-o", str(folder)]
        subprocess.run(command, check=True)
    queries, identity, text = lengths
    torch.manual_seed(0)
    made = [
        torch.randn(2, n, 10, 64, device=device, dtype=torch.float16) for n in (queries, identity, identity, text, text)
    ]
    q, k_id, v_id, k_t, v_t = (each.transpose(1, 2) for each in made)
    strength = torch.tensor([1.0, 0.5], device=device)
    shifts = torch.full((2, 2, 10, 16, 64), float("nan"), device=device)
    out = torch.full((2, queries, 10, 64), float("nan"), device=device, dtype=torch.float16)
    segments = {"k_id": k_id, "v_id": v_id, "k_t": k_t, "v_t": v_t}
    sizes = {"rows": 2, "heads": 10, "queries": queries, "identity_length": identity, "text_length": text}
    loaded = KernelBundle.load(folder)
    stream = torch.cuda.current_stream().cuda_stream
    found = segments | {"shift_k": shifts[0], "shift_v": shifts[1]}
    tensors = {"mean_shift": found | {"strength": strength}, "mixed_attention": found | {"q": q, "out": out}}
    for op, given in tensors.items():
        kernel = loaded.find(op, f"sm_{major}{minor}", "float16", 64, lengths[1:], queries, shared_limit)
        kernel.launch(stream, {name: tensor.data_ptr() for name, tensor in given.items()}, sizes)
    torch.cuda.synchronize()
    exact = [each.double() for each in (q, k_id, v_id, k_t, v_t)]
    if identity == 0:
        expected = torch.nn.functional.scaled_dot_product_attention(exact[0], exact[3], exact[4])
    else:
        expected = mixed_attention_reference(*exact, strength.double())
    error = (out.transpose(1, 2).double() - expected).norm() / expected.norm()
    assert error <= 1e-3, f"relative RMS {error:.1e}"
