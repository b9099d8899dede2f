from __future__ import annotations

import math

import pytest
import torch

from infid_kernels import adain, merged_cross_attention_reference, mixed_attention_reference

SHAPES = [(2, 3, 16, 16, 16, 8), (1, 2, 7, 5, 63, 64), (3, 1, 1, 1, 77, 32)]


def make(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    batch, heads, queries, own, other, width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [queries, own, own, other, other]
    tensors = [torch.randn(batch, heads, n, width, generator=generator, dtype=torch.float64) for n in sizes]
    tensors[3] += 3.0  # different means
    return [tensor.to(dtype) for tensor in tensors]


def oracle(q, k_id, v_id, k_t, v_t, s, scale):
    """Mixed attention computed directly from the formula, in float64."""
    q, k_id, v_id, k_t, v_t = (t.double() for t in (q, k_id, v_id, k_t, v_t))
    s = s.double().view(-1, 1, 1, 1)
    k = torch.cat([k_id + s * (k_t.mean(2, keepdim=True) - k_id.mean(2, keepdim=True)), k_t], 2)
    v = torch.cat([v_id + s * (v_t.mean(2, keepdim=True) - v_id.mean(2, keepdim=True)), v_t], 2)
    return torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_mixed_attention_equals_the_formula(shape, strength):
    tensors = make(shape, torch.float32)
    s = torch.full((shape[0],), strength)
    scale = 1 / math.sqrt(shape[-1])
    # logits reach 30 here, and fp32 rounds 30 by 2e-6
    assert relative(mixed_attention_reference(*tensors, s), oracle(*tensors, s, scale)) < 4e-6
    assert relative(mixed_attention_reference(*tensors, s, scale=0.3), oracle(*tensors, s, 0.3)) < 4e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_softmaxes_merged_by_log_sum_exp_equal_the_formula(shape):
    q, k_id, v_id, k_t, v_t = make(shape, torch.float64)
    s, scale = torch.full((shape[0],), 0.7, dtype=torch.float64), 1 / math.sqrt(shape[-1])
    delta_k = 0.7 * (k_t.mean(2, keepdim=True) - k_id.mean(2, keepdim=True))
    delta_v = 0.7 * (v_t.mean(2, keepdim=True) - v_id.mean(2, keepdim=True))
    own, other = q @ k_id.transpose(-1, -2) * scale, q @ k_t.transpose(-1, -2) * scale
    offset = (q @ delta_k.transpose(-1, -2)).squeeze(-1) * scale
    weight = torch.sigmoid(own.logsumexp(-1) + offset - other.logsumexp(-1)).unsqueeze(-1)
    merged = weight * (own.softmax(-1) @ v_id + delta_v) + (1 - weight) * (other.softmax(-1) @ v_t)
    assert relative(merged, oracle(q, k_id, v_id, k_t, v_t, s, scale)) < 1e-13


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("factor", [0.0, 1.0, 1.5])
def test_merged_cross_attention_equals_adain_on_keys_and_values(strength, factor):
    q, k_id, v_id, k_t, v_t = make((2, 3, 9, 13, 77, 16), torch.float64)
    s = torch.full((2,), strength, dtype=torch.float64)
    shifted = [
        x + strength * (y.mean(2, keepdim=True) - x.mean(2, keepdim=True)) for x, y in ((k_id, k_t), (v_id, v_t))
    ]
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(q, k_t, v_t) + factor * attend(q, *shifted)
    floats = [t.float() for t in (q, k_t, v_t, k_id, v_id)]
    found = merged_cross_attention_reference(*floats, s, torch.full((2,), factor))
    assert relative(found, expected) < 1e-6


def test_without_a_person_the_references_attend_to_the_text_alone():
    q, k_id, v_id, k_t, v_t = make((2, 3, 9, 0, 77, 16), torch.float32)
    text = torch.nn.functional.scaled_dot_product_attention(q, k_t, v_t)
    s = torch.full((2,), 0.7)
    assert torch.equal(merged_cross_attention_reference(q, k_t, v_t, k_id, v_id, s, s), text)
    assert torch.equal(mixed_attention_reference(q, k_id, v_id, k_t, v_t, s), text)


def test_standard_adain_takes_over_mean_and_deviation():
    x, y = torch.randn(1, 1, 500, 4), 3 * torch.randn(1, 1, 300, 4) + 5
    moved = adain(x, y, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(moved.mean(2), y.mean(2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.var(2, correction=0), y.var(2, correction=0), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(adain(x, y, torch.zeros(1, 1, 1, 1)), x)
