"""Attention operations of Infinite-ID: fused Triton kernels, each with its plain PyTorch reference."""

from infid_kernels.adain import adain, adain_mean
from infid_kernels.merged_cross_attention import (
    merged_cross_attention,
    merged_cross_attention_reference,
    value_shift,
)
from infid_kernels.mixed_attention import mixed_attention, mixed_attention_reference
from infid_kernels.ops import OPS, AttentionOps

__all__ = [
    "OPS",
    "AttentionOps",
    "adain",
    "adain_mean",
    "merged_cross_attention",
    "merged_cross_attention_reference",
    "mixed_attention",
    "mixed_attention_reference",
    "value_shift",
]
