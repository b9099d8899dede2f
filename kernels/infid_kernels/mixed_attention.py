"""Mixed attention: identity queries over identity and text keys, with AdaIN-mean on the identity's.

O = softmax(Q K̂ᵀ/√d) V̂ with K̂ = [AdaIN(K_id, K_t); K_t] and V̂ = [AdaIN(V_id, V_t); V_t] along tokens
(Infinite-ID, arXiv 2403.11781, section 3.4). Tensors are `[B, H, N, d]`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from infid_kernels.adain import adain_mean


def mixed_attention_reference(
    q: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    style_strength: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend over both segments as the formula is written, with a concatenated and shifted copy.

    Args:
        q: `[B, H, N, d]` identity queries.
        k_id: `[B, H, M, d]` identity keys.
        v_id: `[B, H, M, d]` identity values.
        k_t: `[B, H, L, d]` text keys of the same condition and sample.
        v_t: `[B, H, L, d]` text values.
        style_strength: `[B]`, s of AdaIN-mean.
        scale: factor of the logits; 1/√d if not given.

    Returns:
        `[B, H, N, d]`.
    """
    strength = style_strength.view(-1, 1, 1, 1)
    keys = torch.cat([adain_mean(k_id, k_t, strength), k_t], dim=2)
    values = torch.cat([adain_mean(v_id, v_t, strength), v_t], dim=2)
    return scaled_dot_product_attention(q, keys, values, scale=scale)
