"""The inner loop of both attention kernels: one segment of keys and values under an online softmax.

The state of a tile of queries is (peak, mass, acc): the largest logit in units of log2, and, relative to it, the sum
of the exponentials and the values weighted by them (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    peak, mass, acc, q, k, v, row, head,
    stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    length, logit_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr, SUM_VALUES: tl.constexpr, DESCRIPTORS: tl.constexpr, POLYNOMIAL: tl.constexpr,
):  # fmt: skip
    """Take all keys and values of one segment into the state of a tile.

    Args:
        peak: `[BLOCK_M]` state.
        mass: `[BLOCK_M]` state.
        acc: `[BLOCK_M, BLOCK_D]` state.
        q: `[BLOCK_M, BLOCK_D]` queries.
        k: pointer to the keys `[B, H, M, D]`, or their tensor descriptor with blocks `[1, 1, BLOCK_N, BLOCK_D]`.
        v: pointer to the values, or their descriptor.
        row: of the batch.
        head: of the row.
        stride_kb: elements from one row's keys to the next row's.
        stride_kh: elements from one head's keys to the next head's.
        stride_kn: elements from one key to the next.
        stride_vb: as for the keys.
        stride_vh: as for the keys.
        stride_vn: as for the keys.
        length: number of keys M; 0 leaves the state as it is.
        logit_scale: scale of the logits times log2 e; positive.
        D: channels of a head.
        BLOCK_D: D, or the next power of two.
        BLOCK_N: keys taken at once.
        WHOLE: whether `length` is a multiple of `BLOCK_N`. Without a tail to compile, the kernel needs 20 to 90
            registers less (sm_90, d = 64, 128 × 128: 172, not 208), which decides whether large tiles spill.
        SUM_VALUES: whether to add up the values.
        DESCRIPTORS: whether `k` and `v` are descriptors: Hopper's copy engine fetches the blocks, with zeros for what
            lies beyond `length` and D.
        POLYNOMIAL: whether a quarter of the exponentials is computed on the fp32 units.

    Returns:
        The new state, and the sum of the values over the segment, `[BLOCK_D]` (zeros without `SUM_VALUES`).
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    if not DESCRIPTORS:
        k_tile = k + row * stride_kb + head * stride_kh + offs_n[None, :] * stride_kn + offs_d[:, None]
        v_tile = v + row * stride_vb + head * stride_vh + offs_n[:, None] * stride_vn + offs_d[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    whole = length - length % BLOCK_N
    for start in tl.range(0, whole, BLOCK_N):
        if DESCRIPTORS:
            keys = _fetch(k, row, head, start, BLOCK_N, BLOCK_D).T
            values = _fetch(v, row, head, start, BLOCK_N, BLOCK_D)
        elif BLOCK_D == D:
            keys = tl.load(k_tile)
            values = tl.load(v_tile)
        else:
            keys = tl.load(k_tile, mask=offs_d[:, None] < D, other=0.0)
            values = tl.load(v_tile, mask=offs_d[None, :] < D, other=0.0)
        peak, mass, acc = _block(peak, mass, acc, tl.dot(q, keys), values, logit_scale, POLYNOMIAL)
        if SUM_VALUES:
            total += tl.sum(values.to(tl.float32), 0)
        if not DESCRIPTORS:
            k_tile += BLOCK_N * stride_kn
            v_tile += BLOCK_N * stride_vn
    if not WHOLE:
        left = length - whole
        if left > 0:
            if DESCRIPTORS:
                keys = _fetch(k, row, head, whole, BLOCK_N, BLOCK_D).T
                values = _fetch(v, row, head, whole, BLOCK_N, BLOCK_D)
            else:
                keys = tl.load(k_tile, mask=(offs_n[None, :] < left) & (offs_d[:, None] < D), other=0.0)
                values = tl.load(v_tile, mask=(offs_n[:, None] < left) & (offs_d[None, :] < D), other=0.0)
            logits = tl.where(offs_n[None, :] < left, tl.dot(q, keys), float("-inf"))
            peak, mass, acc = _block(peak, mass, acc, logits, values, logit_scale, POLYNOMIAL)
            if SUM_VALUES:
                total += tl.sum(values.to(tl.float32), 0)
    return peak, mass, acc, total


@triton.jit
def _fetch(blocks, row, head, start, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the block `[BLOCK_N, BLOCK_D]` of a descriptor that begins with token `start`."""
    return blocks.load([row.to(tl.int32), head.to(tl.int32), start, 0]).reshape(BLOCK_N, BLOCK_D)


@triton.jit
def _block(peak, mass, acc, logits, values, logit_scale, POLYNOMIAL: tl.constexpr):
    """Take one block of unscaled logits and its values into the state."""
    largest = tl.maximum(peak, tl.max(logits, 1) * logit_scale)
    shrink = tl.math.exp2(peak - largest)
    powers = logits * logit_scale - largest[:, None]
    weights = tl.math.exp2(powers)
    if POLYNOMIAL:
        # Of the first eight keys in every 32. Which logits a register holds is known to the compiler, so it leaves out
        # the way that `where` does not take.
        chosen = tl.arange(0, logits.shape[1]) % 32 < 8
        weights = tl.where(chosen[None, :], _exp2_by_polynomial(powers), weights)
    mass = mass * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return largest, mass, acc


@triton.jit
def _exp2_by_polynomial(x):
    """Return 2 to the power of `x` ≤ 0, with a relative error of 7.5e-5; rounding to fp16 costs up to 4.9e-4.

    2^x = 2^n · 2^f with n the nearest integer: adding 1.5 · 2²³ leaves n in the lowest bits of the sum, and n is added
    to the exponent of the polynomial's value. The coefficients have the least largest relative error on [-0.5, 0.5].
    """
    x = tl.maximum(x, -126.0)  # the smallest power that the exponent's bits can hold
    rounded = x + 12582912.0
    f = x - (rounded - 12582912.0)
    value = ((0.05517167 * f + 0.24261112) * f + 0.69326099) * f + 0.99992807
    bits = value.to(tl.int32, bitcast=True) + (rounded.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)
