"""Both operations, by the name of their implementation: `torch` or `triton`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from infid_kernels.merged_cross_attention_triton import merged_cross_attention, merged_cross_attention_reference
from infid_kernels.mixed_attention_triton import mixed_attention, mixed_attention_reference


@dataclass(frozen=True)
class AttentionOps:
    """One implementation of both operations.

    Args:
        mixed_attention: takes `(q, k_id, v_id, k_t, v_t, style_strength)`.
        merged_cross_attention: takes `(q, k_t, v_t, k_id, v_id, style_strength, identity_strength)`.
    """

    mixed_attention: Callable[..., Tensor]
    merged_cross_attention: Callable[..., Tensor]


TORCH = AttentionOps(mixed_attention_reference, merged_cross_attention_reference)
TRITON = AttentionOps(mixed_attention, merged_cross_attention)
OPS: Mapping[str, AttentionOps] = {"torch": TORCH, "triton": TRITON}
