"""The mean shifts of AdaIN-mean: δ = s·(μ(X_t) − μ(X_id)), one vector per head, of keys and values or of values alone.

A reduction that is launched before the attention kernel. It reads both segments once, in `SPLITS` chunks of tokens, and
writes one partial sum per chunk, which the attention kernel adds up. So it is one launch without atomics, and gives the
same bits every time. The sums are fp32: over 4096 tokens, fp16 would round the difference of the means away.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from infid_kernels.arguments import launchable, on_device
from infid_kernels.operands import strides
from infid_kernels.tuning import Configuration

# Chunks of the token axis: with 20 pairs of row and head and 4096 tokens, 320 programs on 132 SMs.
SPLITS = 16
# One program per chunk of one head. Blocks of 128 tokens with d = 64 are 16 KB in flight per program, and an SM
# holds two or more programs; to hide a few hundred nanoseconds of latency at 3.35 TB/s, about 15 KB per SM are needed.
CONFIGURATION = Configuration(block_m=1, block_n=128, num_warps=4, num_stages=2)


@triton.jit
def mean_shift_kernel(
    k_id, v_id, k_t, v_t, strength,
    heads, identity_length, text_length,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ktb, stride_kth, stride_ktn, stride_vtb, stride_vth, stride_vtn,
    shift_k, shift_v,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write one chunk's part of the shifts of one head's keys and values; grid (SPLITS, rows · heads)."""
    row_head = tl.program_id(1).to(tl.int64)
    row, head = row_head // heads, row_head % heads
    s = tl.load(strength + row).to(tl.float32)
    _write_part(
        k_id + row * stride_kb + head * stride_kh, stride_kn, identity_length,
        k_t + row * stride_ktb + head * stride_kth, stride_ktn, text_length,
        s, shift_k, row_head, D, BLOCK_D, BLOCK_N, SPLITS,
    )  # fmt: skip
    _write_part(
        v_id + row * stride_vb + head * stride_vh, stride_vn, identity_length,
        v_t + row * stride_vtb + head * stride_vth, stride_vtn, text_length,
        s, shift_v, row_head, D, BLOCK_D, BLOCK_N, SPLITS,
    )  # fmt: skip


@triton.jit
def value_shift_kernel(
    v_id, v_t, strength,
    heads, identity_length, text_length,
    stride_vb, stride_vh, stride_vn, stride_vtb, stride_vth, stride_vtn,
    shift_v,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write one chunk's part of the shift of one head's values; grid (SPLITS, rows · heads)."""
    row_head = tl.program_id(1).to(tl.int64)
    row, head = row_head // heads, row_head % heads
    _write_part(
        v_id + row * stride_vb + head * stride_vh, stride_vn, identity_length,
        v_t + row * stride_vtb + head * stride_vth, stride_vtn, text_length,
        tl.load(strength + row).to(tl.float32), shift_v, row_head, D, BLOCK_D, BLOCK_N, SPLITS,
    )  # fmt: skip


@triton.jit
def _write_part(
    identity, stride_id, identity_length, text, stride_text, text_length, s, shift, row_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write this chunk's part of s·(μ(text) − μ(identity)) of one head."""
    split, offs_d = tl.program_id(0), tl.arange(0, BLOCK_D)
    id_sum = _chunk_sum(identity, stride_id, identity_length, split, D, BLOCK_D, BLOCK_N, SPLITS)
    text_sum = _chunk_sum(text, stride_text, text_length, split, D, BLOCK_D, BLOCK_N, SPLITS)
    id_count = tl.maximum(identity_length, 1)  # M = 0: no 0 / 0; attention multiplies δ by a row sum of 0
    part = s * (text_sum / text_length - id_sum / id_count)
    tl.store(shift + (row_head * SPLITS + split) * D + offs_d, part, mask=offs_d < D)


@triton.jit
def _chunk_sum(
    x, stride_n, length, split,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add up every SPLITS-th block of tokens, starting with block `split`."""
    offs_n, offs_d = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_D)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in tl.range(split * BLOCK_N, length, SPLITS * BLOCK_N):
        rows = start + offs_n
        mask = (rows < length) & (offs_d < D)
        total += tl.load(x + rows.to(tl.int64) * stride_n + offs_d, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(total, 0)


def launch_mean_shift(k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Return the partial shifts of keys and values.

    Args:
        k_id: `[B, H, M, d]` identity keys, M may be 0.
        v_id: `[B, H, M, d]` identity values.
        k_t: `[B, H, L, d]` text keys.
        v_t: `[B, H, L, d]` text values.
        strength: `[B]`, s.

    Returns:
        Two `[B, H, SPLITS, d]` fp32 tensors whose sums over the third axis are δ_k and δ_v.
    """
    shift_k, shift_v = empty_parts(k_id), empty_parts(k_id)
    with on_device(k_id):
        launchable(mean_shift_kernel, k_id)[_grid(k_id)](
            k_id, v_id, k_t, v_t, strength,
            k_id.shape[1], k_id.shape[2], k_t.shape[2],
            *strides(k_id, v_id, k_t, v_t),
            shift_k, shift_v, **_constants(k_id),
        )  # fmt: skip
    return shift_k, shift_v


def launch_value_shift(v_id: Tensor, v_t: Tensor, strength: Tensor) -> Tensor:
    """Return the partial shifts of values, `[B, H, SPLITS, d]` fp32; arguments as in `launch_mean_shift`."""
    shift_v = empty_parts(v_id)
    with on_device(v_id):
        launchable(value_shift_kernel, v_id)[_grid(v_id)](
            v_id, v_t, strength,
            v_id.shape[1], v_id.shape[2], v_t.shape[2],
            *strides(v_id, v_t),
            shift_v, **_constants(v_id),
        )  # fmt: skip
    return shift_v


def empty_parts(x: Tensor) -> Tensor:
    """Return an output for the partial shifts of a tensor `[B, H, M, d]`."""
    rows, heads, _, d = x.shape
    return torch.empty(rows, heads, SPLITS, d, dtype=torch.float32, device=x.device)


def _grid(x: Tensor) -> tuple[int, int]:
    return SPLITS, x.shape[0] * x.shape[1]


def _constants(x: Tensor) -> dict[str, int | bool]:
    d = x.shape[3]
    tiles = {"D": d, "BLOCK_D": triton.next_power_of_2(d), "BLOCK_N": CONFIGURATION.block_n, "SPLITS": SPLITS}
    return {**tiles, **CONFIGURATION.launch_options()}
