"""Merged cross-attention: text and identity tokens, two softmaxes, one output.

O = Attn(Q, K'_t, V'_t) + λ·Attn(Q, AdaIN(K'_id, K'_t), AdaIN(V'_id, V'_t)) with AdaIN-mean (Infinite-ID,
arXiv 2403.11781, section 3.4). Within one softmax a shift common to all keys cancels, and a shift common to all
values is a constant, so exactly O = O_t + λ·(O_id + s·(μ(V'_t) − μ(V'_id))). Tensors are `[B, H, N, d]`.

One kernel reads every query once and writes every output once. The means are added up from the values that the
attention loads anyway: the segments are short, and a second launch would cost about as much as it saves.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op
from torch.nn.functional import scaled_dot_product_attention

from infid_kernels.adain import mean_shift
from infid_kernels.arguments import check_attention, empty_output, launchable, logit_scale, on_device, per_row
from infid_kernels.attend import attend
from infid_kernels.tuning import Configuration, choose


@triton.jit
def merged_cross_attention_kernel(
    q, k_t, v_t, k_id, v_id, style_strength, identity_strength,
    heads, queries, text_length, identity_length,
    stride_qb, stride_qh, stride_qn,
    stride_ktb, stride_kth, stride_ktn, stride_vtb, stride_vth, stride_vtn,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on,
    logit_scale,
    out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Write one tile of queries of one head; grid (⌈queries / BLOCK_M⌉, rows · heads)."""
    tile, row_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = row_head // heads, row_head % heads
    offs_m, offs_d = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    offs_q = offs_m.to(tl.int64)[:, None]
    mask = (offs_m[:, None] < queries) & (offs_d[None, :] < D)
    q_tile = tl.load(
        q + row * stride_qb + head * stride_qh + offs_q * stride_qn + offs_d[None, :], mask=mask, other=0.0
    )

    start_peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    start_mass = tl.zeros([BLOCK_M], tl.float32)
    start_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    scale = logit_scale * 1.4426950408889634  # log2 e: the exponentials are powers of two
    _, mass, acc, text_sum = attend(
        start_peak, start_mass, start_acc, q_tile, k_t, v_t, row, head,
        stride_ktb, stride_kth, stride_ktn, stride_vtb, stride_vth, stride_vtn,
        text_length, scale, D, BLOCK_D, BLOCK_N, WHOLE, SUM_VALUES=True, DESCRIPTORS=False, POLYNOMIAL=False,
    )  # fmt: skip
    result = acc / mass[:, None]
    if identity_length > 0:
        _, mass, acc, identity_sum = attend(
            start_peak, start_mass, start_acc, q_tile, k_id, v_id, row, head,
            stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
            identity_length, scale, D, BLOCK_D, BLOCK_N, WHOLE, SUM_VALUES=True, DESCRIPTORS=False, POLYNOMIAL=False,
        )  # fmt: skip
        s = tl.load(style_strength + row).to(tl.float32)
        factor = tl.load(identity_strength + row).to(tl.float32)
        delta_v = s * (text_sum / text_length - identity_sum / identity_length)
        result += factor * (acc / mass[:, None] + delta_v[None, :])

    out_tile = out + row * stride_ob + head * stride_oh + offs_q * stride_on + offs_d[None, :]
    tl.store(out_tile, result.to(out.dtype.element_ty), mask=mask)


def launch_merged_cross_attention(
    q: Tensor, k_t: Tensor, v_t: Tensor, k_id: Tensor, v_id: Tensor, style_strength: Tensor, identity_strength: Tensor,
    scale: float, out: Tensor, configuration: Configuration, whole: bool,
) -> None:  # fmt: skip
    """Launch the kernel with a configuration of the caller's choice; `merged_cross_attention` takes the table's.

    Args:
        q: `[B, H, N, d]`.
        k_t: `[B, H, L, d]`.
        v_t: `[B, H, L, d]`.
        k_id: `[B, H, T, d]`.
        v_id: `[B, H, T, d]`.
        style_strength: `[B]` fp32, s.
        identity_strength: `[B]` fp32, λ.
        scale: factor of the logits.
        out: `[B, H, N, d]`, where the result is written.
        configuration: tile sizes.
        whole: whether its `block_n` divides L and T.
    """
    rows, heads, queries, d = q.shape
    with on_device(q):
        launchable(merged_cross_attention_kernel)[(triton.cdiv(queries, configuration.block_m), rows * heads)](
            q, k_t, v_t, k_id, v_id, style_strength, identity_strength,
            heads, queries, k_t.shape[2], k_id.shape[2],
            *q.stride()[:3], *k_t.stride()[:3], *v_t.stride()[:3], *k_id.stride()[:3], *v_id.stride()[:3],
            *out.stride()[:3],
            scale,
            out,
            D=d, BLOCK_D=triton.next_power_of_2(d), BLOCK_M=configuration.block_m, BLOCK_N=configuration.block_n,
            WHOLE=whole, **configuration.launch_options(),
        )  # fmt: skip


@triton_op("infid::merged_cross_attention", mutates_args={})
def _merged_cross_attention(
    q: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    style_strength: Tensor,
    identity_strength: Tensor,
    scale: float,
) -> Tensor:
    out = empty_output(q)
    lengths = (k_id.shape[2], k_t.shape[2])
    chosen, whole = choose("merged_cross_attention", q.device, q.shape[3], q.shape[2], lengths)
    strengths = (style_strength, identity_strength)
    launch_merged_cross_attention(q, k_t, v_t, k_id, v_id, *strengths, scale, out, chosen, whole)
    return out


@_merged_cross_attention.register_fake
def _(
    q: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    style_strength: Tensor,
    identity_strength: Tensor,
    scale: float,
) -> Tensor:
    return empty_output(q)


def merged_cross_attention(
    q: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    style_strength: float | Tensor,
    identity_strength: float | Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend to text and identity tokens and add the results, in one kernel.

    Any strides are taken as long as the channels of a head lie side by side. Inference only: it has no derivative.

    Args:
        q: `[B, H, N, d]` image queries, fp16 or bf16; d is 32, 40, 64, 80, 96 or 128.
        k_t: `[B, H, L, d]` text keys.
        v_t: `[B, H, L, d]` text values.
        k_id: `[B, H, T, d]` identity keys; with T = 0 (no person) the result is plain attention to the text.
        v_id: `[B, H, T, d]` identity values.
        style_strength: s of AdaIN-mean, a number or `[B]`.
        identity_strength: λ, a number or `[B]`.
        scale: factor of the logits; 1/√d if not given.

    Returns:
        `[B, H, N, d]`, laid out in memory as `[B, N, H, d]`.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: a shape, device, layout, strength or scale is not what is expected.
    """
    check_attention(q, {"t": (k_t, v_t), "id": (k_id, v_id)}, merged_cross_attention_kernel)
    style, identity = (
        per_row(name, value, q)
        for name, value in (("style_strength", style_strength), ("identity_strength", identity_strength))
    )
    return _merged_cross_attention(q, k_t, v_t, k_id, v_id, style, identity, logit_scale(scale, q.shape[-1]))


def merged_cross_attention_reference(
    q: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    style_strength: float | Tensor,
    identity_strength: float | Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend to text and identity tokens and add the results, in plain PyTorch.

    Args, Returns: as `merged_cross_attention`, in any floating-point dtype and with any head size.
    """
    style, factor = (
        torch.as_tensor(value, device=q.device).view(-1, 1, 1, 1) for value in (style_strength, identity_strength)
    )
    text = scaled_dot_product_attention(q, k_t, v_t, scale=scale)
    if k_id.shape[2] == 0:
        return text
    identity = scaled_dot_product_attention(q, k_id, v_id, scale=scale)
    return text + factor.to(q.dtype) * (identity + mean_shift(v_id, v_t, style))
