"""Mixed attention for Hopper in Gluon: the products of one block overlap with the softmax of the next.

The same O = softmax(Q K̂ᵀ/√d) V̂ as `mixed_attention`, in FlashAttention-3's order within a warpgroup (Shah et al.,
arXiv 2407.08608, section 3.2): S(i) = Q K(i)ᵀ is issued before P(i−1) V(i−1), and the softmax of block i waits for the
first of the two products only. Plain Triton cannot express this: it waits for both (triton 3.6 to 3.9).

One loop runs over both segments, the identity's blocks first. In those, q·δ_k/√d is added to the logits. That costs
nothing per logit: it moves the maximum of a row and cancels in the exponentials. `id_sum` is the identity's part of
`row_sum`; id_sum·δ_v is added to the accumulator at the end.

TMA loads queries, keys and values through 2D descriptors over `[rows · tokens, heads · d]`. The unit of the pipeline is
a pair: pair i holds the keys of block i and the values of block i−1, which step i multiplies. So a pair needs one
mbarrier, and a step waits once. Pair 0 has no values. The last pair, number `blocks`, needs no keys and loads the last
block of keys again, so that it has as many bytes as the others.

Gluon has no interpreter: the tests execute this source on a model of the hardware, and check the order of the
instructions in the machine code; on an H200 it agreed with float64 and was the fastest form (kernels/README.md).
`mixed_attention_gluon` imports this module only where Triton has what it needs.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# triton 3.6 has only the old names, 3.9 only the new ones
async_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
cta_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _load_keys(
    k_id, k_t, bars, k_s, pair, blocks, offsets,
    D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Expect the bytes of both halves of a pair, and load its keys; beyond the last pair do nothing."""
    stage = pair % STAGES
    mbarrier.expect(bars.index(stage), 2 * BLOCK_N * D * 2, pred=pair <= blocks)
    block = gl.minimum(pair, blocks - 1)
    _load(k_id, k_t, bars.index(stage), k_s.index(stage), block, offsets, pair <= blocks, BLOCK_N)


@gluon.jit
def _load_values(
    v_id, v_t, bars, v_s, pair, blocks, offsets, BLOCK_N: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Load the values of a pair whose bytes are expected; beyond the last pair do nothing."""
    stage = pair % STAGES
    _load(v_id, v_t, bars.index(stage), v_s.index(stage), pair - 1, offsets, pair <= blocks, BLOCK_N)


@gluon.jit
def _load(identity, text, bar, buffer, block, offsets, issue, BLOCK_N: gl.constexpr):
    """Load a block of one head's keys or values into shared memory.

    `offsets` are the number of identity blocks, which come first; the row of the descriptor to which
    block · BLOCK_N is added, for the identity and for the text; and the first channel of the head.
    """
    id_blocks, id_start, text_start, channel = offsets
    if block < id_blocks:
        source = identity
        start = id_start
    else:
        source = text
        start = text_start
    async_load(source, [start + block * BLOCK_N, channel], bar, buffer, pred=issue)


@gluon.jit
def _shift_parts(shift, row_head, D: gl.constexpr, SPLITS: gl.constexpr):
    """Return the parts `[SPLITS, D]` of one head's shift, 16 bytes per thread and load."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [128 // D, D // 4], [gl.num_warps(), 1], [1, 0])
    offs_split = gl.arange(0, SPLITS, gl.SliceLayout(1, layout))
    offs_d = gl.arange(0, D, gl.SliceLayout(0, layout))
    return gl.load(shift + row_head * SPLITS * D + offs_split[:, None] * D + offs_d[None, :])


@gluon.jit
def mixed_attention_gluon_kernel(
    q, k_id, v_id, k_t, v_t, shift_k, shift_v,
    heads, queries, identity_length, text_length,
    stride_ob, stride_oh, stride_on,
    logit_scale,
    out,
    D: gl.constexpr, SPLITS: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Write one tile of queries of one head; grid (⌈queries / BLOCK_M⌉, rows · heads).

    Why the pipeline is correct, for pair i in stage i % STAGES:

    1. *Phases.* The barrier of a stage completes once per pair, so pair i is its (i // STAGES)-th completion, and
       (i // STAGES) & 1 is the parity to wait for. A barrier is armed for pair i + STAGES only after a CTA barrier that
       follows every thread's wait for pair i: no thread can miss a phase.
    2. *Bytes.* `expect` has the same predicate as both copies of its pair, and precedes them. It expects both, so the
       phase cannot complete between them, although the values are copied half a step after the keys. A block comes from
       one descriptor and is inside the tensor; TMA would also count the bytes of padding.
    3. *Keys* are overwritten only after every warp has read them: `warpgroup_mma_wait(1)` leaves the newest group, P V,
       in flight and returns when Q Kᵀ is complete. It waits for its own warpgroup only, hence the CTA barrier after it.
    4. *Values* likewise, after `warpgroup_mma_wait(0)` and a CTA barrier.
    5. *Fences.* The operands are written by TMA and read by wgmma, both in the async proxy. Only the barriers'
       initialization is an ordinary store, which TMA must see.
    6. *Lifetimes.* The compiler reuses shared memory after its last use. So barriers are invalidated last, and a CTA
       barrier separates the last product, which reads `v_s`, from the reduction after it, which needs shared memory.
       Every pair that is copied is waited for: no copy arrives in memory that the next program owns.
    """
    tile, row_head = gl.program_id(0), gl.program_id(1)
    row, head = row_head // heads, row_head % heads
    channel = head * D
    id_blocks = identity_length // BLOCK_N
    blocks = id_blocks + text_length // BLOCK_N
    id_start, text_start = row * identity_length, row * text_length - identity_length
    offsets = (id_blocks, id_start, text_start, channel)
    scale = logit_scale * 1.4426950408889634  # log2 e: the exponentials are powers of two

    logits_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, D, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, logits_layout)
    out_row_layout: gl.constexpr = gl.SliceLayout(1, out_layout)
    channel_layout: gl.constexpr = gl.SliceLayout(0, out_layout)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)

    q_s = gl.allocate_shared_memory(q.dtype, [BLOCK_M, D], q.layout)
    k_s = gl.allocate_shared_memory(q.dtype, [STAGES, BLOCK_N, D], k_t.layout)
    v_s = gl.allocate_shared_memory(q.dtype, [STAGES, BLOCK_N, D], v_t.layout)
    q_bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_bar, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(bars.index(i), count=1)
    fence_async_shared()
    cta_barrier()

    mbarrier.expect(q_bar, BLOCK_M * D * 2)
    async_load(q, [row * queries + tile * BLOCK_M, channel], q_bar, q_s)
    mbarrier.expect(bars.index(0), BLOCK_N * D * 2)
    _load(k_id, k_t, bars.index(0), k_s.index(0), 0, offsets, True, BLOCK_N)
    for i in gl.static_range(1, STAGES):
        _load_keys(k_id, k_t, bars, k_s, i, blocks, offsets, D, BLOCK_N, STAGES)
        _load_values(v_id, v_t, bars, v_s, i, blocks, offsets, BLOCK_N, STAGES)

    delta_k = gl.convert_layout(gl.sum(_shift_parts(shift_k, row_head, D, SPLITS), 0), channel_layout)
    mbarrier.wait(q_bar, 0)
    logit_bias = gl.sum(q_s.load(out_layout).to(gl.float32) * delta_k[None, :], 1)
    logit_bias = gl.convert_layout(logit_bias, row_layout) * scale

    row_max = gl.full([BLOCK_M], float("-inf"), gl.float32, row_layout)
    row_sum = gl.zeros([BLOCK_M], gl.float32, row_layout)
    id_sum = gl.zeros([BLOCK_M], gl.float32, row_layout)
    acc = gl.zeros([BLOCK_M, D], gl.float32, out_layout)
    no_logits = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, logits_layout)

    mbarrier.wait(bars.index(0), 0)
    logits = warpgroup_mma(q_s, k_s.index(0).permute((1, 0)), no_logits, use_acc=False, is_async=True)
    logits = warpgroup_mma_wait(0, deps=(logits,))
    cta_barrier()
    _load_keys(k_id, k_t, bars, k_s, STAGES, blocks, offsets, D, BLOCK_N, STAGES)
    _load_values(v_id, v_t, bars, v_s, STAGES, blocks, offsets, BLOCK_N, STAGES)
    p, row_max, row_sum, id_sum, alpha = _softmax(logits, row_max, row_sum, id_sum, logit_bias, id_blocks > 0, scale)
    p = gl.convert_layout(p.to(q.dtype), p_layout)

    for block in range(1, blocks):
        stage = block % STAGES
        mbarrier.wait(bars.index(stage), (block // STAGES) & 1)
        logits = warpgroup_mma(q_s, k_s.index(stage).permute((1, 0)), no_logits, use_acc=False, is_async=True)
        acc = warpgroup_mma(p, v_s.index(stage), acc, is_async=True)
        logits = warpgroup_mma_wait(1, deps=(logits,))
        cta_barrier()
        _load_keys(k_id, k_t, bars, k_s, block + STAGES, blocks, offsets, D, BLOCK_N, STAGES)
        next_p, row_max, row_sum, id_sum, alpha = _softmax(
            logits, row_max, row_sum, id_sum, logit_bias, block < id_blocks, scale
        )
        next_p = gl.convert_layout(next_p.to(q.dtype), p_layout)
        # the wait keeps the registers of p alive until P V is complete, and makes next_p ready before it
        acc, p, _ = warpgroup_mma_wait(0, deps=(acc, next_p, p))
        cta_barrier()
        _load_values(v_id, v_t, bars, v_s, block + STAGES, blocks, offsets, BLOCK_N, STAGES)
        acc = acc * gl.convert_layout(alpha, out_row_layout)[:, None]

    shift_v_parts = _shift_parts(shift_v, row_head, D, SPLITS)
    mbarrier.wait(bars.index(blocks % STAGES), (blocks // STAGES) & 1)
    acc = warpgroup_mma(p, v_s.index(blocks % STAGES), acc, is_async=True)
    acc, _ = warpgroup_mma_wait(0, deps=(acc, p))
    cta_barrier()
    delta_v = gl.convert_layout(gl.sum(shift_v_parts, 0), channel_layout)
    acc += gl.convert_layout(id_sum, out_row_layout)[:, None] * delta_v[None, :]
    result = acc / gl.convert_layout(row_sum, out_row_layout)[:, None]
    offs_m = tile * BLOCK_M + gl.arange(0, BLOCK_M, out_row_layout)
    offs_d = gl.arange(0, D, channel_layout)
    out_head = out + row.to(gl.int64) * stride_ob + head * stride_oh
    out_tile = out_head + offs_m.to(gl.int64)[:, None] * stride_on + offs_d[None, :]
    gl.store(out_tile, result.to(q.dtype), mask=offs_m[:, None] < queries)
    mbarrier.invalidate(q_bar)
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(bars.index(i))


@gluon.jit
def _softmax(logits, row_max, row_sum, id_sum, logit_bias, identity, scale):
    """Update a tile's softmax state with one block of unscaled logits.

    Args:
        logits: `[BLOCK_M, BLOCK_N]` fp32.
        row_max: `[BLOCK_M]`, the largest logit so far, in units of log2.
        row_sum: `[BLOCK_M]`, the sum of the exponentials relative to it.
        id_sum: `[BLOCK_M]`, the identity's part of the sum.
        logit_bias: `[BLOCK_M]`, q·δ_k in units of log2.
        identity: whether the block is of the identity segment.
        scale: of the logits, times log2 e; positive.

    Returns:
        The exponentials, the new state, and the factor that rescales the accumulator.
    """
    id_mask = gl.where(identity, 1.0, 0.0)
    logit_bias = id_mask * logit_bias
    new_max = gl.maximum(row_max, gl.max(logits, 1) * scale + logit_bias)
    alpha = gl.exp2(row_max - new_max)
    p = gl.exp2(logits * scale - (new_max - logit_bias)[:, None])
    block_sum = gl.sum(p, 1)
    return p, new_max, row_sum * alpha + block_sum, id_sum * alpha + id_mask * block_sum, alpha
