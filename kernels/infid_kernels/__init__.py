"""Attention operations of Infinite-ID: fused Triton kernels, each with its plain PyTorch reference.

Each is imported on first use, since `infid_kernels.targets` must be importable without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infid_kernels.adain_torch import adain as adain
    from infid_kernels.adain_torch import adain_mean as adain_mean
    from infid_kernels.merged_cross_attention_triton import merged_cross_attention as merged_cross_attention
    from infid_kernels.merged_cross_attention_triton import (
        merged_cross_attention_reference as merged_cross_attention_reference,
    )
    from infid_kernels.merged_cross_attention_triton import value_shift as value_shift
    from infid_kernels.mixed_attention_triton import mixed_attention as mixed_attention
    from infid_kernels.mixed_attention_triton import mixed_attention_reference as mixed_attention_reference
    from infid_kernels.ops import OPS as OPS
    from infid_kernels.ops import AttentionOps as AttentionOps

_MODULE_OF = {
    "OPS": "ops",
    "AttentionOps": "ops",
    "adain": "adain_torch",
    "adain_mean": "adain_torch",
    "merged_cross_attention": "merged_cross_attention_triton",
    "merged_cross_attention_reference": "merged_cross_attention_triton",
    "mixed_attention": "mixed_attention_triton",
    "mixed_attention_reference": "mixed_attention_triton",
    "value_shift": "merged_cross_attention_triton",
}
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


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Raises:
        AttributeError: there is no such name.
        ModuleNotFoundError: torch is not installed.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'infid_kernels' has no attribute '{name}'")
    return getattr(import_module(f"infid_kernels.{_MODULE_OF[name]}"), name)
