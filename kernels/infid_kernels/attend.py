"""The inner loop of both attention kernels: one segment of keys and values under an online softmax.

The state of a tile of queries is (peak, mass, acc): the largest logit in units of log2, and, relative to it, the sum
of the exponentials and the values weighted by them (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    peak, mass, acc, q, k, v, stride_kn, stride_vn, length, logit_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr, SUM_VALUES: tl.constexpr,
):  # fmt: skip
    """Take all keys and values of one segment into the state of a tile.

    Args:
        peak: `[BLOCK_M]` state.
        mass: `[BLOCK_M]` state.
        acc: `[BLOCK_M, BLOCK_D]` state.
        q: `[BLOCK_M, BLOCK_D]` queries.
        k: pointer to the segment's first key.
        v: pointer to the segment's first value.
        stride_kn: elements from one key to the next.
        stride_vn: elements from one value to the next.
        length: number of keys; 0 leaves the state as it is.
        logit_scale: scale of the logits times log2 e; positive.
        D: channels of a head.
        BLOCK_D: D, or the next power of two.
        BLOCK_N: keys taken at once.
        WHOLE: whether `length` is a multiple of `BLOCK_N`. Without a tail to compile, the kernel needs 20 to 90
            registers less (sm_90, d = 64, 128 × 128: 172, not 208), which decides whether large tiles spill.
        SUM_VALUES: whether to add up the values.

    Returns:
        The new state, and the sum of the values over the segment, `[BLOCK_D]` (zeros without `SUM_VALUES`).
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    k_tile = k + offs_n[None, :] * stride_kn + offs_d[:, None]
    v_tile = v + offs_n[:, None] * stride_vn + offs_d[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    whole = length - length % BLOCK_N
    for _ in tl.range(0, whole, BLOCK_N):
        if BLOCK_D == D:
            keys = tl.load(k_tile)
            values = tl.load(v_tile)
        else:
            keys = tl.load(k_tile, mask=offs_d[:, None] < D, other=0.0)
            values = tl.load(v_tile, mask=offs_d[None, :] < D, other=0.0)
        peak, mass, acc = _block(peak, mass, acc, tl.dot(q, keys), values, logit_scale)
        if SUM_VALUES:
            total += tl.sum(values.to(tl.float32), 0)
        k_tile += BLOCK_N * stride_kn
        v_tile += BLOCK_N * stride_vn
    if not WHOLE:
        left = length - whole
        if left > 0:
            keys = tl.load(k_tile, mask=(offs_n[None, :] < left) & (offs_d[:, None] < D), other=0.0)
            values = tl.load(v_tile, mask=(offs_n[:, None] < left) & (offs_d[None, :] < D), other=0.0)
            logits = tl.where(offs_n[None, :] < left, tl.dot(q, keys), float("-inf"))
            peak, mass, acc = _block(peak, mass, acc, logits, values, logit_scale)
            if SUM_VALUES:
                total += tl.sum(values.to(tl.float32), 0)
    return peak, mass, acc, total


@triton.jit
def _block(peak, mass, acc, logits, values, logit_scale):
    """Take one block of unscaled logits and its values into the state."""
    largest = tl.maximum(peak, tl.max(logits, 1) * logit_scale)
    shrink = tl.math.exp2(peak - largest)
    weights = tl.math.exp2(logits * logit_scale - largest[:, None])
    mass = mass * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return largest, mass, acc
