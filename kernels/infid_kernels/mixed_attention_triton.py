"""Mixed attention: identity queries over identity and text keys, with AdaIN-mean on the identity's.

O = softmax(Q K̂ᵀ/√d) V̂ with K̂ = [AdaIN(K_id, K_t); K_t] and V̂ = [AdaIN(V_id, V_t); V_t] along tokens
(Infinite-ID, arXiv 2403.11781, section 3.4). Tensors are `[B, H, N, d]`.

The kernel makes neither a concatenated nor a shifted copy. With δ_k = s·(μ(K_t) − μ(K_id)), and δ_v likewise, the
shift adds q·δ_k/√d to all identity logits of a query, and δ_v to all identity values. So it runs over the
unshifted identity segment, then updates the state once (row_max += q·δ_k/√d, acc += row_sum·δ_v), then runs over the
text segment: the shift costs nothing in the inner loop. `mean_shift` computes the shifts.

The tuning table (`tuning`) chooses what runs: this kernel, or two attentions of a library (`library_attention`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op
from torch.nn.functional import scaled_dot_product_attention
from triton.tools.tensor_descriptor import TensorDescriptor

from infid_kernels.adain_torch import adain_mean
from infid_kernels.arguments import (
    check_attention,
    empty_output,
    has_values,
    launchable,
    logit_scale,
    on_device,
    per_row,
)
from infid_kernels.attend import attend
from infid_kernels.library_attention import launch_library
from infid_kernels.mean_shift import launch_mean_shift
from infid_kernels.mixed_attention_gluon import launch_mixed_attention_gluon, takes
from infid_kernels.operands import Operands, strides
from infid_kernels.tuning import Choice, Configuration, Library, choose


@triton.jit
def mixed_attention_kernel(
    q, k_id, v_id, k_t, v_t, shift_k, shift_v,
    heads, queries, identity_length, text_length,
    stride_qb, stride_qh, stride_qn,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ktb, stride_kth, stride_ktn, stride_vtb, stride_vth, stride_vtn,
    stride_ob, stride_oh, stride_on,
    logit_scale,
    out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Write one tile of queries of one head; grid (⌈queries / BLOCK_M⌉, rows · heads).

    If DESCRIPTORS, the keys and values are tensor descriptors (see `attend`).
    """
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
    scale = tl.cast(logit_scale, tl.float32) * 1.4426950408889634  # log2 e; torch.compile declares floats as fp64
    row_max, row_sum, acc = attend(
        (row_max, row_sum, acc), q_tile, k_id, v_id, row, head,
        (stride_kb, stride_kh, stride_kn), (stride_vb, stride_vh, stride_vn),
        identity_length, scale, D, BLOCK_D, BLOCK_N, EVEN_N, DESCRIPTORS,
    )  # fmt: skip
    # Without identity tokens the state is (−∞, 0, 0) here. A branch instead would make ptxas serialize the matrix
    # products of both loops (its warning C7515; sm_90: 24 WARPGROUP.ARRIVE for 24 HGMMA, without the branch 4).
    parts = row_head * SPLITS * D + tl.arange(0, SPLITS)[:, None] * D + offs_d[None, :]
    delta_k = tl.sum(tl.load(shift_k + parts, mask=offs_d[None, :] < D, other=0.0), 0)
    delta_v = tl.sum(tl.load(shift_v + parts, mask=offs_d[None, :] < D, other=0.0), 0)
    row_max += tl.sum(q_tile.to(tl.float32) * delta_k[None, :], 1) * scale
    acc += row_sum[:, None] * delta_v[None, :]
    row_max, row_sum, acc = attend(
        (row_max, row_sum, acc), q_tile, k_t, v_t, row, head,
        (stride_ktb, stride_kth, stride_ktn), (stride_vtb, stride_vth, stride_vtn),
        text_length, scale, D, BLOCK_D, BLOCK_N, EVEN_N, DESCRIPTORS,
    )  # fmt: skip

    out_tile = out + row * stride_ob + head * stride_oh + offs_q * stride_on + offs_d[None, :]
    tl.store(out_tile, (acc / row_sum[:, None]).to(out.dtype.element_ty), mask=mask)


def launch_mixed_attention(
    operands: Operands, shifts: tuple[Tensor, Tensor], scale: float, out: Tensor, choice: Choice,
    even_n: bool,
) -> None:  # fmt: skip
    """Launch a given choice; `mixed_attention` takes the choice of the tuning table.

    Args:
        operands: queries, keys and values.
        shifts: of keys and values, each `[B, H, parts, d]` fp32, whose sums over the third axis are δ_k and δ_v;
            `parts` is a power of two.
        scale: factor of the logits.
        out: `[B, H, N, d]`, where the result is written.
        choice: tile sizes and form of the kernel; with descriptors, keys and values must be `_describable`, and the
            Gluon form must take the call. Or a library.
        even_n: whether the kernel's `block_n` divides M and L.
    """
    if isinstance(choice, Library):
        launch_library(operands, shifts, scale, out, choice)
        return
    if choice.gluon:
        launch_mixed_attention_gluon(operands, shifts, scale, out, choice)
        return
    q = operands.q
    rows, heads, queries, d = q.shape
    block_d = triton.next_power_of_2(d)
    segments: list[Tensor | TensorDescriptor] = [*operands.segments]
    if choice.descriptors:
        block = [1, 1, choice.block_n, block_d]
        segments = [TensorDescriptor.from_tensor(each, block) for each in operands.described_segments]
    with on_device(q):
        launchable(mixed_attention_kernel, q)[(triton.cdiv(queries, choice.block_m), rows * heads)](
            q, *segments, *shifts,
            heads, queries, *operands.lengths,
            *strides(*operands, out),
            scale,
            out,
            D=d, BLOCK_D=block_d, SPLITS=shifts[0].shape[2],
            BLOCK_M=choice.block_m, BLOCK_N=choice.block_n, EVEN_N=even_n, DESCRIPTORS=choice.descriptors,
            **choice.launch_options(),
        )  # fmt: skip


def _describable(tensor: Tensor) -> bool:
    """Return whether a tensor descriptor can describe a tensor: strides and address are multiples of 16 bytes."""
    elements = 16 // tensor.element_size()
    return all(stride > 0 and stride % elements == 0 for stride in strides(tensor)) and tensor.data_ptr() % 16 == 0


def mixed_attention_choice(operands: Operands) -> tuple[Choice, bool]:
    """Return the table's choice for a call, in a form that can compute it: Gluon, else descriptors, else plain."""
    q = operands.q
    call = ("mixed_attention", q.device, q.shape[3], q.shape[2], operands.lengths)
    if not has_values(q):
        # a traced call is launched later, on other memory and maybe another GPU; torch 2.14 traces no descriptors
        return choose(*call, only="plain")
    chosen, even_n = choose(*call)
    if isinstance(chosen, Configuration):
        if chosen.gluon and not takes(operands, chosen):
            chosen = replace(chosen, gluon=False, descriptors=True)
        if chosen.descriptors and not all(_describable(each) for each in operands.segments):
            return choose(*call, only="plain")
    return chosen, even_n


@triton_op("infid::mixed_attention", mutates_args={})
def _mixed_attention(
    q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, style_strength: Tensor, scale: float
) -> Tensor:
    out, operands = empty_output(q), Operands(q, k_id, v_id, k_t, v_t)
    shifts = launch_mean_shift(*operands.segments, style_strength)
    launch_mixed_attention(operands, shifts, scale, out, *mixed_attention_choice(operands))
    return out


@_mixed_attention.register_fake
def _(q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, style_strength: Tensor, scale: float) -> Tensor:
    return empty_output(q)


def mixed_attention(
    q: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    style_strength: float | Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend over both segments in one pass.

    Any strides are accepted as long as the channels of a head are contiguous, so views of `[B, N, H·d]` projections
    need no copy. Inference only: no backward pass.

    Args:
        q: `[B, H, N, d]` identity queries, fp16 or bf16; d is 32, 40, 64, 80, 96 or 128.
        k_id: `[B, H, M, d]` identity keys; with M = 0 (no person) the result is plain attention to the text.
        v_id: `[B, H, M, d]` identity values.
        k_t: `[B, H, L, d]` text keys of the same condition and sample.
        v_t: `[B, H, L, d]` text values.
        style_strength: s of AdaIN-mean, a number, a 0-dimensional tensor or `[B]`.
        scale: factor of the logits; 1/√d if not given.

    Returns:
        `[B, H, N, d]`, laid out in memory as `[B, N, H, d]`.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: a shape, device, layout, strength or scale is not what is expected.
    """
    check_attention(q, {"id": (k_id, v_id), "t": (k_t, v_t)}, mixed_attention_kernel)
    strength = per_row("style_strength", style_strength, q)
    return _mixed_attention(q, k_id, v_id, k_t, v_t, strength, logit_scale(scale, q.shape[-1]))


def mixed_attention_reference(
    q: Tensor,
    k_id: Tensor,
    v_id: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    style_strength: float | Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend over both segments as the formula is written, with a concatenated and shifted copy.

    Args, Returns: as `mixed_attention`, in any floating-point dtype and with any head size.
    """
    strength = torch.as_tensor(style_strength, device=q.device).view(-1, 1, 1, 1)
    keys = torch.cat([adain_mean(k_id, k_t, strength), k_t], dim=2)
    values = torch.cat([adain_mean(v_id, v_t, strength), v_t], dim=2)
    return scaled_dot_product_attention(q, keys, values, scale=scale)
