"""The Gluon form of mixed attention: which calls it takes, and its launch.

The kernel and what it computes are in `attend_gluon`. The form is for Hopper alone, full blocks of keys, head sizes of
64 and 128, and tensors that are stored token by token. What it does not take it rejects with a reason.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from infid_kernels.arguments import DTYPES, on_device
from infid_kernels.tuning import Configuration

try:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from infid_kernels.attend_gluon import mixed_attention_gluon_kernel

    MISSING = ""
except (ImportError, AttributeError) as error:  # Gluon is experimental: a later Triton may have moved or renamed it
    MISSING = f"Triton {triton.__version__} has no Gluon for Hopper as the kernel needs it ({error})"

HEAD_SIZES = (64, 128)  # whole rows of 128 bytes, the widest swizzle; others would be padded, and the padding masked
CAPABILITY = (9, 0)  # no other GPU has wgmma


def launch_mixed_attention_gluon(
    q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, shift_k: Tensor, shift_v: Tensor, scale: float,
    out: Tensor, configuration: Configuration,
) -> None:  # fmt: skip
    """Launch the kernel.

    Args: as `launch_mixed_attention`, of a call that this form `takes`.

    Raises:
        ValueError: it does not take the call; the message says why.
    """
    reason = rejection(q, k_id, v_id, k_t, v_t, configuration)
    if reason:
        raise ValueError(f"the Gluon form of mixed attention cannot compute this call: {reason}; choose another form")
    rows, heads, queries, d = q.shape
    # nothing is read of an empty segment, of which there is no descriptor
    segments = (k_id, v_id, k_t, v_t) if k_id.shape[2] else (k_t, v_t, k_t, v_t)
    with on_device(q):
        mixed_attention_gluon_kernel[(triton.cdiv(queries, configuration.block_m), rows * heads)](
            _descriptor(q, configuration.block_m), *(_descriptor(each, configuration.block_n) for each in segments),
            shift_k, shift_v,
            heads, queries, k_id.shape[2], k_t.shape[2],
            *out.stride()[:3],
            scale,
            out,
            D=d, SPLITS=shift_k.shape[2], BLOCK_M=configuration.block_m, BLOCK_N=configuration.block_n,
            STAGES=configuration.num_stages, **configuration.launch_options(),
        )  # fmt: skip


def takes(q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, configuration: Configuration) -> bool:
    """Return whether this form can compute a call on the GPU that it is on; `rejection` says why not."""
    return _capability(q.device) == CAPABILITY and not rejection(q, k_id, v_id, k_t, v_t, configuration)


def _capability(device: torch.device) -> tuple[int, int] | None:
    """Return a GPU's compute capability; None if it is none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def rejection(q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, configuration: Configuration) -> str:
    """Return why this form cannot compute a call on any Hopper GPU, or nothing if it can.

    Args:
        q: `[B, H, N, d]`, any number of queries: those of the last tile that are the next row's are not stored.
        k_id: `[B, H, M, d]`; M may be 0.
        v_id: `[B, H, M, d]`.
        k_t: `[B, H, L, d]`.
        v_t: `[B, H, L, d]`.
        configuration: tile sizes; its `block_n` must divide M and L.
    """
    c, d, lengths = configuration, q.shape[3], (k_id.shape[2], k_t.shape[2])
    if MISSING:
        return MISSING
    if c.num_warps % 4 or c.block_m % (16 * c.num_warps):
        return f"each warpgroup of 4 warps multiplies 64 queries at a time, got {c.block_m} with {c.num_warps} warps"
    if d not in HEAD_SIZES or q.dtype not in DTYPES:
        return f"it computes head sizes of 64 and 128 in float16 and bfloat16, got {d} in {q.dtype}"
    if any(length % c.block_n for length in lengths):
        return f"it reads full blocks of {c.block_n} keys, got {lengths[0]} and {lengths[1]}"
    for name, tensor in {"q": q, "k_id": k_id, "v_id": v_id, "k_t": k_t, "v_t": v_t}.items():
        if tensor.shape[2] and not _packed(tensor):
            return (
                f"TMA reads {name} as a matrix with the heads of a token side by side, tokens a multiple of 16 bytes "
                f"apart and rows one after the other, got strides {tuple(tensor.stride())}"
            )
    return ""


def _token_stride(tensor: Tensor) -> int:
    """Return the elements from one token to the next; with a single token, to the next row's."""
    rows, heads, tokens, d = tensor.shape
    return tensor.stride(2) if tokens > 1 else tensor.stride(0) if rows > 1 else heads * d


def _packed(tensor: Tensor) -> bool:
    """Return whether `[B, H, N, d]` is stored as a matrix `[B · N, H · d]` that a descriptor can describe."""
    rows, heads, tokens, d = tensor.shape
    row, head, _, channel = tensor.stride()
    token = _token_stride(tensor)
    matrix = channel == 1 and (heads == 1 or head == d) and (rows == 1 or row == tokens * token)
    aligned = token * tensor.element_size() % 16 == 0 and tensor.data_ptr() % 16 == 0
    return matrix and aligned and token >= heads * d


def _descriptor(tensor: Tensor, tokens: int) -> Any:
    """Return the descriptor of a `_packed` tensor, whose blocks are `tokens` tokens of one head."""
    rows, heads, length, d = tensor.shape
    return TensorDescriptor(
        tensor, [rows * length, heads * d], [_token_stride(tensor), 1], [tokens, d], shared_layout()
    )


def shared_layout() -> Any:
    """Return how a block is stored in shared memory, where TMA writes and wgmma reads it."""
    return NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
