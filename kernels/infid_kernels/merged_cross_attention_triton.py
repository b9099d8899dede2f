"""Merged cross-attention: text and identity tokens, two softmaxes, one output.

O = Attn(Q, K'_t, V'_t) + λ·Attn(Q, AdaIN(K'_id, K'_t), AdaIN(V'_id, V'_t)) with AdaIN-mean (Infinite-ID,
arXiv 2403.11781, section 3.4). Within one softmax a shift common to all keys cancels, and a shift common to all
values is a constant, so exactly O = O_t + λ·(O_id + δ_v) with δ_v = s·(μ(V'_t) − μ(V'_id)). Tensors are `[B, H, N, d]`.

One kernel reads every query once and writes every output once. δ_v is an input. It is fixed for a person and a prompt,
so a caller that runs many steps computes it once with `value_shift`; if it is not given, the operation computes it
before the kernel. Without the sum of the values, the loop has 205 instead of 308 instructions per block, and the kernel
122 instead of 171 registers per thread (sm_90, d = 64, 128 × 32, 8 warps).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op
from torch.nn.functional import scaled_dot_product_attention

from infid_kernels.adain_torch import mean_shift
from infid_kernels.arguments import (
    check_attention,
    check_shift,
    check_values,
    empty_output,
    launchable,
    logit_scale,
    on_device,
    per_row,
)
from infid_kernels.attend import attend
from infid_kernels.mean_shift import empty_parts, launch_value_shift, value_shift_kernel
from infid_kernels.operands import Operands, strides
from infid_kernels.tuning import Configuration, choose_kernel


@triton.jit
def merged_cross_attention_kernel(
    q, k_t, v_t, k_id, v_id, shift_v, identity_strength,
    heads, queries, text_length, identity_length,
    stride_qb, stride_qh, stride_qn,
    stride_ktb, stride_kth, stride_ktn, stride_vtb, stride_vth, stride_vtn,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_on,
    logit_scale,
    out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr,
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

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    initial = (row_max, row_sum, acc)  # of both softmaxes
    scale = tl.cast(logit_scale, tl.float32) * 1.4426950408889634  # log2 e; torch.compile declares floats as fp64
    _, text_sum, text_acc = attend(
        initial, q_tile, k_t, v_t, row, head,
        (stride_ktb, stride_kth, stride_ktn), (stride_vtb, stride_vth, stride_vtn),
        text_length, scale, D, BLOCK_D, BLOCK_N, EVEN_N, DESCRIPTORS=False,
    )  # fmt: skip
    result = text_acc / text_sum[:, None]
    _, id_sum, id_acc = attend(
        initial, q_tile, k_id, v_id, row, head,
        (stride_kb, stride_kh, stride_kn), (stride_vb, stride_vh, stride_vn),
        identity_length, scale, D, BLOCK_D, BLOCK_N, EVEN_N, DESCRIPTORS=False,
    )  # fmt: skip
    # without identity tokens the loop is empty and id_sum is 0; λ is set to 0, so that δ_v is not added
    factor = tl.where(identity_length > 0, tl.load(identity_strength + row).to(tl.float32), 0.0)
    parts = row_head * SPLITS * D + tl.arange(0, SPLITS)[:, None] * D + offs_d[None, :]
    delta_v = tl.sum(tl.load(shift_v + parts, mask=offs_d[None, :] < D, other=0.0), 0)
    id_sum = tl.where(id_sum > 0, id_sum, 1.0)
    result += factor * (id_acc / id_sum[:, None] + delta_v[None, :])

    out_tile = out + row * stride_ob + head * stride_oh + offs_q * stride_on + offs_d[None, :]
    tl.store(out_tile, result.to(out.dtype.element_ty), mask=mask)


def launch_merged_cross_attention(
    operands: Operands, shift_v: Tensor, identity_strength: Tensor, scale: float, out: Tensor,
    configuration: Configuration, even_n: bool,
) -> None:  # fmt: skip
    """Launch the kernel with a given configuration; `merged_cross_attention` takes the one of the tuning table.

    Args:
        operands: queries, keys and values.
        shift_v: `[B, H, parts, d]` fp32, whose sum over the third axis is δ_v; `parts` is a power of two.
        identity_strength: `[B]` fp32, λ.
        scale: factor of the logits.
        out: `[B, H, N, d]`, where the result is written.
        configuration: tile sizes.
        even_n: whether its `block_n` divides both lengths of keys.
    """
    q, k_id, v_id, k_t, v_t = operands
    rows, heads, queries, d = q.shape
    with on_device(q):
        launchable(merged_cross_attention_kernel, q)[(triton.cdiv(queries, configuration.block_m), rows * heads)](
            q, k_t, v_t, k_id, v_id, shift_v, identity_strength,
            heads, queries, k_t.shape[2], k_id.shape[2],
            *strides(q, k_t, v_t, k_id, v_id, out),
            scale,
            out,
            D=d, BLOCK_D=triton.next_power_of_2(d), SPLITS=shift_v.shape[2],
            BLOCK_M=configuration.block_m, BLOCK_N=configuration.block_n,
            EVEN_N=even_n, **configuration.launch_options(),
        )  # fmt: skip


@triton_op("infid::value_shift", mutates_args={})
def _value_shift(v_id: Tensor, v_t: Tensor, style_strength: Tensor) -> Tensor:
    return launch_value_shift(v_id, v_t, style_strength)


@_value_shift.register_fake
def _(v_id: Tensor, v_t: Tensor, style_strength: Tensor) -> Tensor:
    return empty_parts(v_id)


@triton_op("infid::merged_cross_attention", mutates_args={})
def _merged_cross_attention(
    q: Tensor, k_t: Tensor, v_t: Tensor, k_id: Tensor, v_id: Tensor, shift_v: Tensor, identity_strength: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    out, operands = empty_output(q), Operands(q, k_id, v_id, k_t, v_t)
    chosen, even_n = choose_kernel("merged_cross_attention", q.device, q.shape[3], q.shape[2], operands.lengths)
    launch_merged_cross_attention(operands, shift_v, identity_strength, scale, out, chosen, even_n)
    return out


@_merged_cross_attention.register_fake
def _(
    q: Tensor, k_t: Tensor, v_t: Tensor, k_id: Tensor, v_id: Tensor, shift_v: Tensor, identity_strength: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
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
    shift_v: Tensor | None = None,
) -> Tensor:
    """Attend to text and identity tokens and add the results, in one kernel.

    Any strides are accepted as long as the channels of a head are contiguous. Inference only: no backward pass.

    Args:
        q: `[B, H, N, d]` image queries, fp16 or bf16; d is 32, 40, 64, 80, 96 or 128.
        k_t: `[B, H, L, d]` text keys.
        v_t: `[B, H, L, d]` text values.
        k_id: `[B, H, T, d]` identity keys; with T = 0 (no person) the result is plain attention to the text.
        v_id: `[B, H, T, d]` identity values.
        style_strength: s of AdaIN-mean, a number, a 0-dimensional tensor or `[B]`.
        identity_strength: λ, likewise.
        scale: factor of the logits; 1/√d if not given.
        shift_v: `[B, H, d]` fp32, δ_v as `value_shift` returns it. It is fixed for a person, a prompt and s: given
            here, no step computes it again, and `style_strength` is not read.

    Returns:
        `[B, H, N, d]`, laid out in memory as `[B, N, H, d]`.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: a shape, device, layout, strength or scale is not what is expected.
    """
    check_attention(q, {"t": (k_t, v_t), "id": (k_id, v_id)}, merged_cross_attention_kernel)
    factor = per_row("identity_strength", identity_strength, q)
    if shift_v is None:
        parts = _value_shift(v_id, v_t, per_row("style_strength", style_strength, q))
    else:
        parts = check_shift("shift_v", shift_v, q).unsqueeze(2)
    return _merged_cross_attention(q, k_t, v_t, k_id, v_id, parts, factor, logit_scale(scale, q.shape[-1]))


def value_shift(v_id: Tensor, v_t: Tensor, style_strength: float | Tensor) -> Tensor:
    """Return δ_v = s·(μ(V'_t) − μ(V'_id)), which `merged_cross_attention` takes as `shift_v`.

    Args:
        v_id: `[B, H, T, d]` identity values, fp16 or bf16.
        v_t: `[B, H, L, d]` text values.
        style_strength: s of AdaIN-mean, a number, a 0-dimensional tensor or `[B]`.

    Returns:
        `[B, H, d]` fp32.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: a shape, device, layout or strength is not what is expected.
    """
    check_values(v_id, v_t, value_shift_kernel)
    return _value_shift(v_id, v_t, per_row("style_strength", style_strength, v_id)).sum(2)


def merged_cross_attention_reference(
    q: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    style_strength: float | Tensor,
    identity_strength: float | Tensor,
    scale: float | None = None,
    shift_v: Tensor | None = None,
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
    delta_v = mean_shift(v_id, v_t, style) if shift_v is None else shift_v.unsqueeze(2).to(q.dtype)
    return text + factor.to(q.dtype) * (identity + delta_v)
