"""The mean shifts of AdaIN-mean for keys and values: δ = s·(μ(K_t) − μ(K_id)), one vector a head.

A companion reduction in front of mixed attention. It reads both segments once, in `SPLITS` chunks of tokens, and
leaves the partial sums to its reader, so it is one launch without atomics and gives the same bits every time.
Means of 4096 tokens in fp16 would round the difference away; the sums are fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from infid_kernels.arguments import launchable, on_device
from infid_kernels.tuning import Configuration

# Chunks of the token axis: with 20 pairs of row and head and 4096 tokens, 320 programs on 132 multiprocessors.
SPLITS = 16
CONFIGURATION = Configuration(block_m=1, block_n=64, num_warps=4, num_stages=2)  # one program, one chunk of one head


@triton.jit
def mean_shift_kernel(
    k_id, v_id, k_t, v_t, strength,
    heads, identity_length, text_length,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ktb, stride_kth, stride_ktn, stride_vtb, stride_vth, stride_vtn,
    shift_k, shift_v,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Write one chunk's part of the shifts of one head; grid (SPLITS, rows · heads)."""
    split, row_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = row_head // heads, row_head % heads
    s = tl.load(strength + row).to(tl.float32)
    keys, values = _chunk_sums(
        k_id + row * stride_kb + head * stride_kh, v_id + row * stride_vb + head * stride_vh,
        stride_kn, stride_vn, identity_length, split, D, BLOCK_D, BLOCK_N, SPLITS,
    )  # fmt: skip
    text_keys, text_values = _chunk_sums(
        k_t + row * stride_ktb + head * stride_kth, v_t + row * stride_vtb + head * stride_vth,
        stride_ktn, stride_vtn, text_length, split, D, BLOCK_D, BLOCK_N, SPLITS,
    )  # fmt: skip
    offs_d = tl.arange(0, BLOCK_D)
    out = (row_head * SPLITS + split) * D + offs_d
    some = tl.maximum(identity_length, 1)  # without identity tokens nothing is shifted, and nothing reads it
    tl.store(shift_k + out, s * (text_keys / text_length - keys / some), mask=offs_d < D)
    tl.store(shift_v + out, s * (text_values / text_length - values / some), mask=offs_d < D)


@triton.jit
def _chunk_sums(
    k, v, stride_kn, stride_vn, length, split,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add up the keys and the values of every SPLITS-th block, starting with block `split`."""
    offs_n, offs_d = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_D)[None, :]
    keys, values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in tl.range(split * BLOCK_N, length, SPLITS * BLOCK_N):
        rows = start + offs_n
        mask = (rows < length) & (offs_d < D)
        rows = rows.to(tl.int64)
        keys += tl.load(k + rows * stride_kn + offs_d, mask=mask, other=0.0).to(tl.float32)
        values += tl.load(v + rows * stride_vn + offs_d, mask=mask, other=0.0).to(tl.float32)
    return tl.sum(keys, 0), tl.sum(values, 0)


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
    rows, heads, length, d = k_id.shape
    shifts = [torch.empty(rows, heads, SPLITS, d, dtype=torch.float32, device=k_id.device) for _ in range(2)]
    with on_device(k_id):
        launchable(mean_shift_kernel)[(SPLITS, rows * heads)](
            k_id, v_id, k_t, v_t, strength,
            heads, length, k_t.shape[2],
            *k_id.stride()[:3], *v_id.stride()[:3], *k_t.stride()[:3], *v_t.stride()[:3],
            *shifts,
            D=d, BLOCK_D=triton.next_power_of_2(d), BLOCK_N=CONFIGURATION.block_n, SPLITS=SPLITS,
            **CONFIGURATION.launch_options(),
        )  # fmt: skip
    return shifts[0], shifts[1]
