from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import Case
from torch import Tensor

from infid_kernels import arguments, merged_cross_attention, mixed_attention, value_shift

OPS = {
    "mixed_attention": lambda q, k_id, v_id, k_t, v_t, s=1.0, scale=None: mixed_attention(
        q, k_id, v_id, k_t, v_t, s, scale
    ),
    "merged_cross_attention": lambda q, k_id, v_id, k_t, v_t, s=1.0, scale=None: merged_cross_attention(
        q, k_t, v_t, k_id, v_id, s, 1.0, scale
    ),
}
Change = Callable[[dict[str, Any]], dict[str, Any]]
BAD: dict[str, tuple[Change, type[Exception], str]] = {
    "heads": (
        lambda a: a | {"k_t": a["k_t"][:, :2]}, ValueError,
        "k_t must be [1, 3, 77, 64] as q is, got [1, 2, 77, 64]",
    ),
    "rows": (lambda a: a | {"v_id": a["v_id"].repeat(2, 1, 1, 1)}, ValueError, "v_id must be [1, 3, 63, 64]"),
    "lengths of one segment": (
        lambda a: a | {"v_t": a["v_t"][:, :, 1:]}, ValueError,
        "v_t must be [1, 3, 77, 64] as q and k_t are, got [1, 3, 76, 64]",
    ),
    "dimensions": (lambda a: a | {"q": a["q"][0]}, ValueError, "q must be [B, H, N, d], got [3, 77, 64]"),
    "dtype": (
        lambda a: a | {"k_id": a["k_id"].float()}, TypeError, "k_id must be torch.float16 as q is, got torch.float32"
    ),
    "dtype of all": (lambda a: {name: x.float() for name, x in a.items()}, TypeError, "q must be float16 or bfloat16"),
    "device": (lambda a: a | {"v_t": a["v_t"].to("meta")}, ValueError, "v_t must be on cpu as q is, got meta"),
    "head size": (
        lambda a: {name: x[..., :48] for name, x in a.items()}, ValueError,
        "q must have a head size of 32, 40, 64, 80, 96, 128, got 48",
    ),
    "layout": (
        lambda a: a | {"k_t": a["k_t"].transpose(2, 3).contiguous().transpose(2, 3)}, ValueError,
        "k_t must have contiguous channels",
    ),
    "tokens too far apart": (
        lambda a: {name: x.to("meta") for name, x in a.items()}
        | {"v_id": torch.empty_strided((1, 3, 63, 64), (1, 64, 2**24, 1), dtype=torch.float16, device="meta")},
        ValueError, "v_id must have tokens at most 16777215 elements apart, got strides (1, 64, 16777216, 1)",
    ),
    "too many heads": (
        lambda a: {name: x[:, :1, :1].expand(1, 65536, 1, 64) for name, x in a.items()}, ValueError,
        "q must have at most 65535 heads over all rows, got 1 · 65536",
    ),
    "no text": (
        lambda a: a | {"k_t": a["k_t"][:, :, :0], "v_t": a["v_t"][:, :, :0]}, ValueError,
        "k_t must have at least one token",
    ),
    "infinite strength": (lambda a: a | {"s": float("inf")}, ValueError, "style_strength must be finite, got inf"),
    "NaN strength": (lambda a: a | {"s": torch.tensor([float("nan")])}, ValueError, "style_strength must be finite"),
    "strength of other rows": (
        lambda a: a | {"s": torch.ones(2)}, ValueError, "style_strength must be a number or [1]"
    ),
    "negative scale": (lambda a: a | {"scale": -1.0}, ValueError, "scale must be positive and finite, got -1.0"),
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("what", BAD)
def test_a_bad_argument_is_named_with_what_was_expected(op: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "JITFunction", ())  # CPU tensors are valid here, even on a machine with a GPU
    change, kind, message = BAD[what]
    names = ("q", "k_id", "v_id", "k_t", "v_t")
    good: dict[str, Any] = dict(zip(names, Case("good").tensors(0, torch.device("cpu")), strict=True))
    with pytest.raises(kind, match=re.escape(message)):
        OPS[op](**change(good))


@pytest.mark.parametrize("op", OPS)
def test_cpu_tensors_are_for_the_interpreter_alone(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "JITFunction", object)  # without the interpreter
    tensors = Case("compiled").tensors(0, torch.device("cpu"))
    with pytest.raises(
        ValueError, match="q must be on a CUDA device, got cpu; CPU tensors are for Triton's interpreter"
    ):
        OPS[op](*tensors)
    assert OPS[op](*(x.to("meta") for x in tensors)).shape == (1, 3, 77, 64)


@pytest.mark.parametrize(
    ("shift", "kind", "message"),
    [
        (torch.zeros(1, 3, 1, 64), ValueError, "shift_v must be [1, 3, 64], one vector per row and head"),
        (torch.zeros(1, 3, 64).half(), TypeError, "shift_v must be torch.float32, got torch.float16"),
        (torch.zeros(1, 3, 64, device="meta"), ValueError, "shift_v must be on cpu as q is, got meta"),
    ],
    ids=["shape", "dtype", "device"],
)
def test_a_bad_shift_is_named_with_what_was_expected(
    shift: Tensor, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "JITFunction", ())
    q, k_id, v_id, k_t, v_t = Case("good").tensors(0, torch.device("cpu"))
    with pytest.raises(kind, match=re.escape(message)):
        merged_cross_attention(q, k_t, v_t, k_id, v_id, 1.0, 1.0, shift_v=shift)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v_id, v_t: (v_id[0], v_t), "v_id must be [B, H, N, d], got [3, 63, 64]"),
        (lambda v_id, v_t: (v_id, v_t[:, :2]), "v_t must be [1, 3, 77, 64] as v_id is, got [1, 2, 77, 64]"),
        (lambda v_id, v_t: (v_id, v_t[:, :, :0]), "v_t must have at least one token"),
    ],
    ids=["dimensions", "heads", "no text"],
)
def test_bad_values_are_named_with_what_was_expected(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    _, _, v_id, _, v_t = Case("good").tensors(0, torch.device("cpu"))
    with pytest.raises(ValueError, match=re.escape(message)):
        value_shift(*change(v_id, v_t), 1.0)


def test_kernels_are_launched_on_the_tensors_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    second, entered = torch.device("cuda", 1), []
    q = torch.empty(1)
    monkeypatch.setattr(torch.cuda, "device", entered.append)
    arguments.on_device(q)
    assert entered == []
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda tensor: second), raising=False)
    arguments.on_device(q)
    assert entered == [second]


def test_every_launch_is_on_the_tensors_own_gpu(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    inside: list[str] = []

    @contextmanager
    def on_device(tensor: Tensor) -> Iterator[None]:
        assert tensor.device == device
        inside.append("on")
        yield
        inside.append("off")

    for name in ("mean_shift", "mixed_attention_triton", "merged_cross_attention_triton"):
        module = import_module(f"infid_kernels.{name}")
        monkeypatch.setattr(module, "on_device", on_device)
        monkeypatch.setattr(
            module, "launchable", lambda kernel, tensor: defaultdict(lambda: lambda *_, **__: inside.append("launch"))
        )
    for op, launches in (("mixed_attention", 2), ("merged_cross_attention", 2)):
        inside.clear()
        OPS[op](*Case("small", (9, 7, 5)).tensors(0, device))
        assert inside == launches * ["on", "launch", "off"]


def calls(device: torch.device) -> dict[str, tuple[Any, tuple[Tensor, ...]]]:
    case = Case("traced", rows=2)
    q, k_id, v_id, k_t, v_t = case.tensors(7, device)
    strength = case.strengths(device)
    return {
        "mixed_attention": (mixed_attention, (q, k_id, v_id, k_t, v_t, strength)),
        "merged_cross_attention": (merged_cross_attention, (q, k_t, v_t, k_id, v_id, strength, strength)),
    }


def registered(op: str, arguments: tuple[Tensor, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return the registered operator behind a public function, and its arguments."""
    operation = getattr(torch.ops.infid, op).default
    if op == "mixed_attention":
        return operation, (*arguments, 0.125)
    *tensors, style, identity = arguments
    shift = torch.ops.infid.value_shift.default(tensors[4], tensors[2], style)
    return operation, (*tensors, shift, identity, 0.125)


@pytest.mark.parametrize("op", OPS)
def test_the_fake_implementation_agrees_with_the_real_one(op: str, device: torch.device) -> None:
    function, arguments = calls(device)[op]
    for operation, given in (
        registered(op, arguments),
        (torch.ops.infid.value_shift.default, (arguments[2], arguments[4], arguments[5])),
    ):
        torch.library.opcheck(operation, given, test_utils=("test_schema", "test_faketensor"), raise_exception=True)
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = function(*arguments)
    with FakeTensorMode() as mode:
        fake = function(*(mode.from_tensor(x) for x in arguments))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


class Wrapped(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments) * 2


@pytest.mark.parametrize("op", OPS)
def test_torch_export_keeps_the_operation(op: str, device: torch.device) -> None:
    function, arguments = calls(device)[op]
    program = torch.export.export(Wrapped(function), arguments, strict=False)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert f"infid.{op}.default" in names
    assert torch.equal(program.module()(*arguments), function(*arguments) * 2)


@pytest.mark.parametrize("op", OPS)
def test_torch_compile_gives_the_same_result(op: str, device: torch.device) -> None:
    function, arguments = calls(device)[op]
    backend = "inductor" if device.type == "cuda" else "eager"  # inductor needs a compiler, not the interpreter
    compiled = torch.compile(Wrapped(function), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*arguments), function(*arguments) * 2, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_aotinductor_packs_the_kernel(op: str, tmp_path: Path) -> None:
    function, arguments = calls(torch.device("cuda"))[op]
    program = torch.export.export(Wrapped(function), arguments, strict=False)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "kernel.pt2"))
    found = torch._inductor.aoti_load_package(package)(*arguments)
    torch.testing.assert_close(found, function(*arguments) * 2, rtol=1e-3, atol=1e-3)
