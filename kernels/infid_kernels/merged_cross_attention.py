"""Merged cross-attention: text and identity tokens, two softmaxes, one output.

O = Attn(Q, K'_t, V'_t) + λ·Attn(Q, AdaIN(K'_id, K'_t), AdaIN(V'_id, V'_t)) with AdaIN-mean. Within one softmax
a shift common to all keys cancels, and a shift common to all values is a constant, so exactly
O = O_t + λ·(O_id + s·(μ(V'_t) − μ(V'_id))). Tensors are `[B, H, N, d]`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from infid_kernels.adain import mean_shift


def merged_cross_attention_reference(
    q: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    style_strength: Tensor,
    identity_strength: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend to text and identity tokens and add the results.

    Args:
        q: `[B, H, N, d]` image queries.
        k_t: `[B, H, L, d]` text keys.
        v_t: `[B, H, L, d]` text values.
        k_id: `[B, H, T, d]` identity keys.
        v_id: `[B, H, T, d]` identity values.
        style_strength: `[B]`, s of AdaIN-mean.
        identity_strength: `[B]`, λ.
        scale: factor of the logits; 1/√d if not given.

    Returns:
        `[B, H, N, d]`.
    """
    text = scaled_dot_product_attention(q, k_t, v_t, scale=scale)
    identity = scaled_dot_product_attention(q, k_id, v_id, scale=scale)
    shift = mean_shift(v_id, v_t, style_strength.view(-1, 1, 1, 1))
    return text + identity_strength.view(-1, 1, 1, 1).to(q.dtype) * (identity + shift)
