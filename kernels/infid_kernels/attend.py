"""The inner loop of both attention kernels: one segment of keys and values under an online softmax.

The state of a tile of queries is (row_max, row_sum, acc): the largest logit in units of log2, and, relative to it, the
sum of the exponentials and the sum of the values weighted by them (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv
2307.08691).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    state, q, k, v, row, head, stride_k, stride_v, length, logit_scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    EVEN_N: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Update the state of a tile of queries with all keys and values of one segment.

    Args:
        state: row_max `[BLOCK_M]`, row_sum `[BLOCK_M]` and acc `[BLOCK_M, BLOCK_D]`.
        q: `[BLOCK_M, BLOCK_D]` queries.
        k: pointer to the keys `[B, H, M, D]`, or their tensor descriptor with blocks `[1, 1, BLOCK_N, BLOCK_D]`.
        v: pointer to the values, or their descriptor.
        row: index of the row in the batch.
        head: index of the head.
        stride_k: strides of the keys' rows, heads and tokens, in elements.
        stride_v: strides of the values' rows, heads and tokens.
        length: number of keys M; 0 leaves the state as it is.
        logit_scale: scale of the logits times log2 e; positive.
        D: channels of a head.
        BLOCK_D: D, or the next power of two.
        BLOCK_N: keys per block.
        EVEN_N: whether `length` is a multiple of `BLOCK_N`. The masked tail is then not compiled, which
            saves up to 40 registers per thread (sm_90, d = 64, 128 × 128 with pointers: 199 instead of 226). That
            decides how many programs an SM holds, or whether large tiles spill.
        DESCRIPTORS: whether `k` and `v` are tensor descriptors. TMA then loads the blocks, and fills what is beyond
            `length` and D with zeros.

    Returns:
        The new state.
    """
    row_max, row_sum, acc = state
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    if not DESCRIPTORS:
        k_tile = k + row * stride_k[0] + head * stride_k[1] + offs_n[None, :] * stride_k[2] + offs_d[:, None]
        v_tile = v + row * stride_v[0] + head * stride_v[1] + offs_n[:, None] * stride_v[2] + offs_d[None, :]
    tail_start = length - length % BLOCK_N
    for start in tl.range(0, tail_start, BLOCK_N):
        if DESCRIPTORS:
            keys = _load_block(k, row, head, start, BLOCK_N, BLOCK_D).T
            values = _load_block(v, row, head, start, BLOCK_N, BLOCK_D)
        elif BLOCK_D == D:
            keys = tl.load(k_tile)
            values = tl.load(v_tile)
        else:
            keys = tl.load(k_tile, mask=offs_d[:, None] < D, other=0.0)
            values = tl.load(v_tile, mask=offs_d[None, :] < D, other=0.0)
        row_max, row_sum, acc = _online_softmax(row_max, row_sum, acc, tl.dot(q, keys), values, logit_scale)
        if not DESCRIPTORS:
            k_tile += BLOCK_N * stride_k[2]
            v_tile += BLOCK_N * stride_v[2]
    if not EVEN_N:
        tail = length - tail_start
        if tail > 0:
            if DESCRIPTORS:
                keys = _load_block(k, row, head, tail_start, BLOCK_N, BLOCK_D).T
                values = _load_block(v, row, head, tail_start, BLOCK_N, BLOCK_D)
            else:
                keys = tl.load(k_tile, mask=(offs_n[None, :] < tail) & (offs_d[:, None] < D), other=0.0)
                values = tl.load(v_tile, mask=(offs_n[:, None] < tail) & (offs_d[None, :] < D), other=0.0)
            logits = tl.where(offs_n[None, :] < tail, tl.dot(q, keys), float("-inf"))
            row_max, row_sum, acc = _online_softmax(row_max, row_sum, acc, logits, values, logit_scale)
    return row_max, row_sum, acc


@triton.jit
def _load_block(blocks, row, head, start, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load the block `[BLOCK_N, BLOCK_D]` that begins with token `start` through a descriptor."""
    return blocks.load([row.to(tl.int32), head.to(tl.int32), start, 0]).reshape(BLOCK_N, BLOCK_D)


@triton.jit
def _online_softmax(row_max, row_sum, acc, logits, values, logit_scale):
    """Update the state with one block of unscaled logits `[BLOCK_M, BLOCK_N]` and its values."""
    new_max = tl.maximum(row_max, tl.max(logits, 1) * logit_scale)
    alpha = tl.math.exp2(row_max - new_max)
    p = tl.math.exp2(logits * logit_scale - new_max[:, None])
    row_sum = row_sum * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(values.dtype), values, acc * alpha[:, None])
    return new_max, row_sum, acc
