from __future__ import annotations

from importlib import import_module

import pytest
import torch
from attention_cases import CASES, LIMITS, Case, merged_oracle, mixed_oracle, relative

from infid_kernels import merged_cross_attention, mixed_attention
from infid_kernels.arguments import empty_output


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
