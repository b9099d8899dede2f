"""Mixed attention by two attentions of a library, merged by their log-sum-exp.

With o and ℓ the output and log-sum-exp of one attention per segment on the unshifted keys and values, and
w = σ(ℓ_id + q·δ_k/√d − ℓ_t), mixed attention is exactly w·(o_id + δ_v) + (1 − w)·o_t: the shift of the keys adds the
same number to all identity logits of a query, and the shift of the values adds δ_v to the identity's output. Tensors
are `[B, H, N, d]`; `mean_shift` computes δ.

PyTorch exposes two attentions that return the log-sum-exp, cuDNN's and FlashAttention's. One small kernel merges their
results in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from infid_kernels.arguments import launchable, on_device
from infid_kernels.operands import Operands, strides
from infid_kernels.tuning import Configuration, Library

Attention = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
# The tile size matters little: the kernel reads and writes every element once. Each thread loads 16 bytes at a time.
_TILES = Configuration(block_m=64, block_n=1, num_warps=4, num_stages=1)


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return cuDNN's output and its log-sum-exp (natural logarithm), `[B, H, N]` fp32."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)
    return out, lse.reshape(q.shape[:3])


def flash_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return FlashAttention's output and its log-sum-exp (natural logarithm), `[B, H, N]` fp32."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return out, lse[:, :, : q.shape[2]]  # it may be padded to full blocks of queries


LIBRARIES: Mapping[str, Attention] = {
    "cudnn": cudnn_attention,
    "flash": flash_attention,
}


@triton.jit
def merge_kernel(
    q, out_id, lse_id, out_t, lse_t, shift_k, shift_v,
    heads, queries,
    stride_qb, stride_qh, stride_qn,
    stride_ib, stride_ih, stride_in, stride_lib, stride_lih, stride_lin,
    stride_tb, stride_th, stride_tn, stride_ltb, stride_lth, stride_ltn,
    stride_ob, stride_oh, stride_on,
    logit_scale,
    out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Merge one tile of queries of one head; grid (⌈queries / BLOCK_M⌉, rows · heads)."""
    tile, row_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = row_head // heads, row_head % heads
    offs_m, offs_d = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)[None, :]
    inside = offs_m < queries
    offs_m = offs_m.to(tl.int64)
    mask = inside[:, None] & (offs_d < D)
    parts = row_head * SPLITS * D + tl.arange(0, SPLITS)[:, None] * D + offs_d
    delta_k = tl.sum(tl.load(shift_k + parts, mask=offs_d < D, other=0.0), 0)
    delta_v = tl.sum(tl.load(shift_v + parts, mask=offs_d < D, other=0.0), 0)

    offs_q = offs_m[:, None]
    q_tile = tl.load(q + row * stride_qb + head * stride_qh + offs_q * stride_qn + offs_d, mask=mask, other=0.0)
    identity = tl.load(out_id + row * stride_ib + head * stride_ih + offs_q * stride_in + offs_d, mask=mask, other=0.0)
    text = tl.load(out_t + row * stride_tb + head * stride_th + offs_q * stride_tn + offs_d, mask=mask, other=0.0)
    id_lse = tl.load(lse_id + row * stride_lib + head * stride_lih + offs_m * stride_lin, mask=inside, other=0.0)
    text_lse = tl.load(lse_t + row * stride_ltb + head * stride_lth + offs_m * stride_ltn, mask=inside, other=0.0)

    logit_bias = tl.sum(q_tile.to(tl.float32) * delta_k[None, :], 1) * logit_scale
    w = tl.sigmoid(id_lse + logit_bias - text_lse)[:, None]
    result = w * (identity.to(tl.float32) + delta_v[None, :]) + (1 - w) * text.to(tl.float32)
    out_tile = out + row * stride_ob + head * stride_oh + offs_q * stride_on + offs_d
    tl.store(out_tile, result.to(out.dtype.element_ty), mask=mask)


def launch_library(
    operands: Operands, shifts: tuple[Tensor, Tensor], scale: float, out: Tensor, library: Library
) -> None:
    """Compute mixed attention with a given library; `mixed_attention` takes the choice of the tuning table.

    Args: as `launch_mixed_attention`.

    Raises:
        RuntimeError: the library does not support this call on this GPU.
    """
    attention = LIBRARIES[library.library]
    q, k_id, v_id, k_t, v_t = operands
    out_t, lse_t = attention(q, k_t, v_t, scale)
    if k_id.shape[2] == 0:
        out.copy_(out_t)
        return
    out_id, lse_id = attention(q, k_id, v_id, scale)
    rows, heads, queries, d = q.shape
    with on_device(q):
        launchable(merge_kernel, q)[(triton.cdiv(queries, _TILES.block_m), rows * heads)](
            q, out_id, lse_id, out_t, lse_t, *shifts,
            heads, queries,
            *strides(q, out_id, lse_id, out_t, lse_t, out),
            scale,
            out,
            D=d, BLOCK_D=triton.next_power_of_2(d), SPLITS=shifts[0].shape[2], BLOCK_M=_TILES.block_m,
            **_TILES.launch_options(),
        )  # fmt: skip
