from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import CASES, LIMITS, Case, merged_oracle, mixed_oracle, relative
from torch import Tensor

from infid_kernels import (
    library_attention,
    merged_cross_attention,
    mixed_attention,
    mixed_attention_triton,
    value_shift,
)
from infid_kernels.arguments import empty_output
from infid_kernels.tuning import Choice, Configuration, Library


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill outputs with NaN, so elements that a kernel does not write are NaN."""
    for name in ("mixed_attention", "merged_cross_attention"):
        module = f"infid_kernels.{name}_triton"
        monkeypatch.setattr(f"{module}.empty_output", lambda q: empty_output(q).fill_(float("nan")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mixed_attention(case: Case, device: torch.device) -> None:
    tensors, strength = case.tensors(1, device), case.strengths(device)
    found = mixed_attention(*tensors, strength)
    error = relative(found, mixed_oracle(tensors, strength))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert found.dtype == case.dtype
    assert found.transpose(1, 2).is_contiguous()


FORM_CASES = (
    "one token", "odd 77, three rows of five heads", "identity longer than text", "no person", "full blocks",
    "head size 40", "layout heads", "layout sliced", "large content", "ties content", "means content",
    "bf16, large content",
)  # fmt: skip


PLAIN = Configuration(32, 32, 4, 2)
DESCRIPTORS = replace(PLAIN, descriptors=True)


def choosing(monkeypatch: pytest.MonkeyPatch, chosen: Choice) -> list[Choice]:
    """Make mixed attention choose a form or a library; returns a list that records the launches."""
    module, launched = mixed_attention_triton, []
    launch = module.launch_mixed_attention

    def watched(*arguments: Any) -> None:
        launched.append(arguments[4])
        launch(*arguments)

    def choose(*call: Any, only: str | None = None) -> tuple[Choice, bool]:
        allowed = chosen.plain if only == "plain" and isinstance(chosen, Configuration) else chosen
        return allowed, allowed.divides(call[-1])

    monkeypatch.setattr(module, "choose", choose)
    monkeypatch.setattr(module, "launch_mixed_attention", watched)
    return launched


@pytest.mark.parametrize("case", [each for each in CASES if each.name in FORM_CASES], ids=lambda case: case.name)
def test_mixed_attention_by_descriptors(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = choosing(monkeypatch, DESCRIPTORS)
    tensors, strength = case.tensors(5, device), case.strengths(device)
    error = relative(mixed_attention(*tensors, strength), mixed_oracle(tensors, strength))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert launched == [DESCRIPTORS]


def test_what_the_gluon_form_does_not_take_is_computed_by_descriptors(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = choosing(monkeypatch, replace(PLAIN, gluon=True))
    case = Case("full blocks", (64, 128, 96), rows=2)
    tensors, strength = case.tensors(5, device), case.strengths(device)
    error = relative(mixed_attention(*tensors, strength), mixed_oracle(tensors, strength))
    assert error <= LIMITS[case.dtype]
    assert launched == [DESCRIPTORS]  # it is for Hopper, and for tiles of 64 queries


def test_what_the_gluon_form_takes_is_launched_in_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    module, launched = mixed_attention_triton, []
    choosing(monkeypatch, replace(PLAIN, gluon=True))
    monkeypatch.setattr(module, "takes", lambda *_: True)
    monkeypatch.setattr(module, "launch_mixed_attention_gluon", lambda *arguments: launched.append(arguments[4]))
    mixed_attention(*Case("full blocks", (64, 128, 96)).tensors(5, device), 1.0)
    assert launched == [replace(PLAIN, gluon=True)]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return what a library's attention returns, computed in float64: rounded output, and log-sum-exp in fp32."""
    logits = q.double() @ k.double().transpose(-1, -2) * scale
    return (logits.softmax(-1) @ v.double()).to(q.dtype), logits.logsumexp(-1).float()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mixed_attention_by_a_library(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is a fake, the merge is real; the library's two outputs are rounded before they are merged."""
    launched = choosing(monkeypatch, Library("cudnn"))
    monkeypatch.setattr(library_attention, "LIBRARIES", {"cudnn": dense_attention})
    tensors, strength = case.tensors(9, device), case.strengths(device)
    found = mixed_attention(*tensors, strength)
    error = relative(found, mixed_oracle(tensors, strength))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert launched == [Library("cudnn")]
    assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("library", library_attention.LIBRARIES)
def test_a_library_is_called_as_it_is_declared(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This runs on meta tensors; the library's result is untested until a GPU runs it."""
    q, k, v = (torch.empty(2, 3, n, 64, dtype=torch.float16, device="meta") for n in (40, 50, 50))
    out, lse = library_attention.LIBRARIES[library](q, k, v, 0.3)
    assert out.shape == q.shape
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32


@pytest.mark.parametrize("what", ["offset", "stride", "expanded"])
def test_tensors_that_descriptors_cannot_describe_are_computed_without(
    what: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = choosing(monkeypatch, DESCRIPTORS)
    case = Case("odd keys")
    tensors, strength = case.tensors(6, device), case.strengths(device)
    if what == "expanded":
        tensors[1] = tensors[1][:, :1].expand(-1, case.heads, -1, -1)
    else:  # one element beyond 16 bytes, or rows that are one element longer
        wide = torch.zeros(1, case.heads, 63, case.d + (8 if what == "offset" else 1), device=device, dtype=case.dtype)
        start = 1 if what == "offset" else 0
        wide[..., start : start + case.d] = tensors[1]
        tensors[1] = wide[..., start : start + case.d]
    assert relative(mixed_attention(*tensors, strength), mixed_oracle(tensors, strength)) <= 1e-3
    assert launched == [PLAIN]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs memory that is not torch's own, which here is the CPU's")
def test_memory_that_is_not_16_byte_aligned_is_computed_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its storage offset is 0, so only the address shows the misalignment."""
    launched = choosing(monkeypatch, DESCRIPTORS)
    case, device = Case("foreign"), torch.device("cpu")
    tensors, strength = case.tensors(6, device), case.strengths(device)
    memory = bytearray(16 + 2 * tensors[1].numel())
    start = (2 - torch.frombuffer(memory, dtype=torch.uint8).data_ptr()) % 16
    foreign = torch.frombuffer(memory, dtype=case.dtype, count=tensors[1].numel(), offset=start)
    tensors[1] = foreign.view(1, 63, case.heads, case.d).transpose(1, 2).copy_(tensors[1])
    assert (tensors[1].storage_offset(), tensors[1].data_ptr() % 16) == (0, 2)
    assert relative(mixed_attention(*tensors, strength), mixed_oracle(tensors, strength)) <= 1e-3
    assert launched == [PLAIN]


def test_while_tracing_descriptors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = choosing(monkeypatch, DESCRIPTORS)
    module = mixed_attention_triton
    shifts = torch.zeros(1, 3, 16, 64)
    monkeypatch.setattr(module, "launch_mean_shift", lambda *_: (shifts, shifts))  # the interpreter has no traced form
    monkeypatch.setattr(module, "launch_mixed_attention", lambda *arguments: launched.append(arguments[4]))
    tensors = Case("traced").tensors(6, torch.device("cpu"))
    torch.compile(mixed_attention, fullgraph=True, backend="aot_eager")(*tensors, torch.ones(1))
    assert set(launched) == {PLAIN}  # traced at least once


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merged_cross_attention(case: Case, device: torch.device) -> None:
    q, k_id, v_id, k_t, v_t = tensors = case.tensors(2, device)
    strength, factor = case.strengths(device), case.strengths(device, 1.5)
    found = merged_cross_attention(q, k_t, v_t, k_id, v_id, strength, factor)
    error = relative(found, merged_oracle(tensors, strength, factor))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert found.dtype == case.dtype


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merged_cross_attention_with_the_shift_of_an_earlier_call(case: Case, device: torch.device) -> None:
    q, k_id, v_id, k_t, v_t = tensors = case.tensors(2, device)
    strength, factor = case.strengths(device), case.strengths(device, 1.5)
    shift_v = value_shift(v_id, v_t, strength)
    if v_id.shape[2]:
        expected = strength.double().view(-1, 1, 1) * (v_t.double().mean(2) - v_id.double().mean(2))
        assert float((shift_v - expected).abs().max()) <= 2e-6 * max(1.0, float(v_t.double().abs().max()))
    found = merged_cross_attention(q, k_t, v_t, k_id, v_id, float("nan"), factor, shift_v=shift_v)
    error = relative(found, merged_oracle(tensors, strength, factor))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"


# Three rows' strengths that are not contiguous, or are one for all.
STRENGTHS: dict[str, Callable[[torch.device], Tensor]] = {
    "a column": lambda device: torch.arange(9.0, device=device).div(4).view(3, 3)[:, 0],
    "every second": lambda device: torch.arange(6.0, device=device).div(4)[::2],
    "one number expanded": lambda device: torch.tensor(0.7, device=device).expand(3),
    "0-dimensional": lambda device: torch.tensor(0.7, device=device),
    "0-dimensional, on the CPU": lambda device: torch.tensor(0.7),
}


@pytest.mark.parametrize("which", STRENGTHS)
def test_strengths_of_any_layout(which: str, device: torch.device) -> None:
    case = Case("strengths", (9, 7, 5), rows=3)
    q, k_id, v_id, k_t, v_t = tensors = case.tensors(8, device)
    strength = STRENGTHS[which](device)
    assert relative(mixed_attention(*tensors, strength), mixed_oracle(tensors, strength)) <= LIMITS[case.dtype]
    found = merged_cross_attention(q, k_t, v_t, k_id, v_id, strength, strength)
    assert relative(found, merged_oracle(tensors, strength, strength)) <= LIMITS[case.dtype]


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_a_scale_of_ones_own(scale: float, device: torch.device) -> None:
    case = Case("scale")
    q, k_id, v_id, k_t, v_t = tensors = case.tensors(3, device)
    strength = case.strengths(device)
    assert relative(mixed_attention(*tensors, 1.0, scale), mixed_oracle(tensors, strength, scale)) <= 1e-3
    found = merged_cross_attention(q, k_t, v_t, k_id, v_id, 1.0, 1.0, scale)
    assert relative(found, merged_oracle(tensors, strength, strength, scale)) <= 1e-3


def test_identity_strength_zero_is_the_text_alone(device: torch.device) -> None:
    q, k_id, v_id, k_t, v_t = Case("text").tensors(4, device)
    found = merged_cross_attention(q, k_t, v_t, k_id, v_id, 1.0, 0.0)
    empty = k_id[:, :, :0]
    assert torch.equal(found, merged_cross_attention(q, k_t, v_t, empty, empty, 1.0, 1.0))


def test_the_same_call_gives_the_same_bits(device: torch.device) -> None:
    tensors = Case("bits", (261, 261, 77)).tensors(5, device)
    assert torch.equal(mixed_attention(*tensors, 1.0), mixed_attention(*tensors, 1.0))
