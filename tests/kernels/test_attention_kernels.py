from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from attention_cases import CASES, LIMITS, Case, merged_oracle, mixed_oracle, relative

from infid_kernels import merged_cross_attention, mixed_attention
from infid_kernels.arguments import empty_output
from infid_kernels.tuning import Configuration, divides


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write stays NaN."""
    for name in ("mixed_attention", "merged_cross_attention"):
        module = import_module(f"infid_kernels.{name}")  # the package's attributes of these names are the functions
        monkeypatch.setattr(module, "empty_output", lambda q: empty_output(q).fill_(float("nan")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mixed_attention(case: Case, device: torch.device) -> None:
    tensors, strength = case.tensors(1, device), case.strengths(device)
    found = mixed_attention(*tensors, strength)
    error = relative(found, mixed_oracle(tensors, strength))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert found.dtype == case.dtype
    assert found.transpose(1, 2).is_contiguous()


# Two persistent programs take three tiles or more each in the interpreter, the last one fewer than the first.
FORMS = {
    "persistent": {"persistent": 2},
    "descriptors": {"descriptors": True},
    "polynomial": {"polynomial": True},
    "all of them": {"persistent": 2, "descriptors": True, "polynomial": True},
}
FORM_CASES = (
    "one token", "odd 77, three rows of five heads", "identity longer than text", "no person", "whole blocks",
    "head size 40", "layout heads", "layout sliced", "large content", "ties content", "means content",
    "bf16, large content",
)  # fmt: skip


def in_form(monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]) -> list[Configuration]:
    """Make mixed attention choose a form; returns a list that receives what is launched."""
    chosen = Configuration(32, 32, 4, 2, **form)
    module, launched = import_module("infid_kernels.mixed_attention"), []
    launch = module.launch_mixed_attention

    def watched(*arguments: Any) -> None:
        launched.append(arguments[9])
        launch(*arguments)

    monkeypatch.setattr(module, "choose", lambda *call: (chosen, divides(chosen, call[-1])))
    monkeypatch.setattr(module, "launch_mixed_attention", watched)
    return launched


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [each for each in CASES if each.name in FORM_CASES], ids=lambda case: case.name)
def test_mixed_attention_in_every_form(
    case: Case, form: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = in_form(monkeypatch, FORMS[form])
    tensors, strength = case.tensors(5, device), case.strengths(device)
    error = relative(mixed_attention(*tensors, strength), mixed_oracle(tensors, strength))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert launched == [Configuration(32, 32, 4, 2, **FORMS[form])]


@pytest.mark.parametrize("what", ["offset", "stride", "expanded"])
def test_what_descriptors_cannot_tell_is_computed_without(
    what: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = in_form(monkeypatch, FORMS["all of them"])
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
    assert launched == [Configuration(32, 32, 4, 2, polynomial=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merged_cross_attention(case: Case, device: torch.device) -> None:
    q, k_id, v_id, k_t, v_t = tensors = case.tensors(2, device)
    strength, factor = case.strengths(device), case.strengths(device, 1.5)
    found = merged_cross_attention(q, k_t, v_t, k_id, v_id, strength, factor)
    error = relative(found, merged_oracle(tensors, strength, factor))
    assert error <= LIMITS[case.dtype], f"relative RMS {error:.1e}"
    assert found.dtype == case.dtype


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
