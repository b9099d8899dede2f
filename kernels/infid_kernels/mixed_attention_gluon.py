"""The Gluon form of mixed attention: the calls that it supports, and its launch.

The kernel is in `attend_gluon`. The form supports Hopper, full blocks of keys, head sizes of 64 and 128, and tensors
that are stored token by token. It rejects other calls with a reason.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from infid_kernels.arguments import DTYPES, on_device
from infid_kernels.operands import Operands, strides
from infid_kernels.tuning import Configuration

try:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from infid_kernels.attend_gluon import mixed_attention_gluon_kernel

    MISSING = ""
except (ImportError, AttributeError) as error:  # Gluon is experimental: a later Triton may have moved or renamed it
    MISSING = f"Triton {triton.__version__} lacks the Gluon features for Hopper that the kernel needs ({error})"

_HEAD_SIZES = (64, 128)  # rows of 128 bytes, the widest swizzle, without padding that would need masks
CAPABILITY = (9, 0)  # no other GPU has wgmma


def launch_mixed_attention_gluon(
    operands: Operands, shifts: tuple[Tensor, Tensor], scale: float, out: Tensor, configuration: Configuration
) -> None:
    """Launch the kernel.

    Args: as `launch_mixed_attention`, of a call that this form `takes`.

    Raises:
        ValueError: it does not support the call; the message says why.
    """
    reason = rejection(operands, configuration)
    if reason:
        raise ValueError(f"the Gluon form of mixed attention cannot compute this call: {reason}; choose another form")
    q, c = operands.q, configuration
    rows, heads, queries, d = q.shape
    segments = (_descriptor(each, c.block_n) for each in operands.described_segments)
    with on_device(q):
        mixed_attention_gluon_kernel[(triton.cdiv(queries, c.block_m), rows * heads)](
            _descriptor(q, c.block_m), *segments, *shifts,
            heads, queries, *operands.lengths,
            *strides(out),
            scale,
            out,
            D=d, SPLITS=shifts[0].shape[2], BLOCK_M=c.block_m, BLOCK_N=c.block_n, STAGES=c.num_stages,
            **c.launch_options(),
        )  # fmt: skip


def takes(operands: Operands, configuration: Configuration) -> bool:
    """Return whether this form can compute a call on the GPU of its tensors; `rejection` says why not."""
    return _capability(operands.q.device) == CAPABILITY and not rejection(operands, configuration)


def _capability(device: torch.device) -> tuple[int, int] | None:
    """Return a GPU's compute capability; None for another device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def rejection(operands: Operands, configuration: Configuration) -> str:
    """Return why this form cannot compute a call on any Hopper GPU; an empty string if it can.

    Args:
        operands: with any number of queries; the last tile may load queries of the next row, but does not store them.
        configuration: tile sizes; its `block_n` must divide M and L.
    """
    c, q, lengths = configuration, operands.q, operands.lengths
    d = q.shape[3]
    if MISSING:
        return MISSING
    if c.num_warps % 4 or c.block_m % (16 * c.num_warps):
        return f"each warpgroup of 4 warps multiplies 64 queries at a time, got {c.block_m} with {c.num_warps} warps"
    if d not in _HEAD_SIZES or q.dtype not in DTYPES:
        return f"it computes head sizes of 64 and 128 in float16 and bfloat16, got {d} in {q.dtype}"
    if any(length % c.block_n for length in lengths):
        return f"it reads full blocks of {c.block_n} keys, got {lengths[0]} and {lengths[1]}"
    for name, tensor in operands._asdict().items():
        if tensor.shape[2] and not _packed(tensor):
            return (
                f"TMA reads {name} as a matrix with the heads of a token side by side, tokens a multiple of 16 bytes "
                f"apart and rows one after the other, got strides {tuple(tensor.stride())}"
            )
    return ""


def _token_stride(tensor: Tensor) -> int:
    """Return the stride of tokens in elements; for a single token, that of rows."""
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
