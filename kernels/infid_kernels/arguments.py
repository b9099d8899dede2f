"""Argument checks of the attention operations; every message says what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton
from triton.runtime.jit import JITFunction

from infid_kernels import targets
from infid_kernels.targets import HEAD_SIZES

DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in targets.DTYPES)
_MAX_HEADS = 65535  # CUDA's limit for the second axis of a grid
_MAX_TOKEN_STRIDE = 2**24 - 1  # elements: offsets within a block of up to 128 tokens are 32-bit integers


def check_attention(q: Tensor, segments: Mapping[str, tuple[Tensor, Tensor]], kernel: Any) -> None:
    """Check queries and segments of keys and values against each other.

    Args:
        q: `[B, H, N, d]`.
        segments: keys and values `[B, H, M, d]`, by the suffix of their argument names (`"id"`, `"t"`).
        kernel: the kernel to launch; unless Triton interprets it, q must be on a GPU.

    Raises:
        TypeError: a dtype is not supported, or differs from q's.
        ValueError: a shape, device or layout is not what is expected.
    """
    _check_first("q", q)
    for ending, (keys, values) in segments.items():
        length = keys.shape[2] if keys.dim() == 4 else "M"
        _check_like(f"k_{ending}", keys, length, q, "as q is")
        _check_like(f"v_{ending}", values, length, q, f"as q and k_{ending} are")
    _check_layout("q", q)
    if segments["t"][0].shape[2] == 0:
        raise ValueError("k_t must have at least one token, got none")
    _check_place("q", q, kernel)


def check_values(v_id: Tensor, v_t: Tensor, kernel: Any) -> None:
    """Check the values of both segments against each other; arguments and errors as in `check_attention`."""
    _check_first("v_id", v_id)
    _check_like("v_t", v_t, v_t.shape[2] if v_t.dim() == 4 else "L", v_id, "as v_id is", "v_id")
    _check_layout("v_id", v_id)
    if v_t.shape[2] == 0:
        raise ValueError("v_t must have at least one token, got none")
    _check_place("v_id", v_id, kernel)


def _check_first(name: str, tensor: Tensor) -> None:
    """Check the tensor that the others are compared with: shape, head size, dtype, grid."""
    if tensor.dim() != 4:
        raise ValueError(f"{name} must be [B, H, N, d], got {_shape(tensor)}")
    if tensor.shape[-1] not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise ValueError(f"{name} must have a head size of {sizes}, got {tensor.shape[-1]}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16 or bfloat16, got {tensor.dtype}")
    rows, heads = tensor.shape[:2]
    if rows * heads > _MAX_HEADS:
        raise ValueError(f"{name} must have at most {_MAX_HEADS} heads over all rows, got {rows} · {heads}")


def _check_like(name: str, tensor: Tensor, length: int | str, first: Tensor, why: str, first_name: str = "q") -> None:
    """Check shape, dtype, device and layout of a tensor against the first one's."""
    rows, heads, _, d = first.shape
    if tensor.dim() != 4 or tuple(tensor.shape) != (rows, heads, length, d):
        raise ValueError(f"{name} must be [{rows}, {heads}, {length}, {d}] {why}, got {_shape(tensor)}")
    if tensor.dtype != first.dtype:
        raise TypeError(f"{name} must be {first.dtype} as {first_name} is, got {tensor.dtype}")
    if tensor.device != first.device:
        raise ValueError(f"{name} must be on {first.device} as {first_name} is, got {tensor.device}")
    _check_layout(name, tensor)


def _check_place(name: str, tensor: Tensor, kernel: Any) -> None:
    if has_values(tensor) and not tensor.is_cuda and isinstance(kernel, JITFunction):
        raise ValueError(
            f"{name} must be on a CUDA device, got {tensor.device}; CPU tensors are for Triton's interpreter "
            "(TRITON_INTERPRET=1 before the first import of triton), and the plain PyTorch references run anywhere"
        )


def _check_layout(name: str, tensor: Tensor) -> None:
    if tensor.stride(3) != 1 and tensor.numel() > 0:
        raise ValueError(f"{name} must have contiguous channels (stride 1), got strides {tuple(tensor.stride())}")
    if tensor.shape[2] > 1 and tensor.stride(2) > _MAX_TOKEN_STRIDE:
        raise ValueError(
            f"{name} must have tokens at most {_MAX_TOKEN_STRIDE} elements apart, got strides {tuple(tensor.stride())}"
            "; copy it with .contiguous()"
        )


def per_row(name: str, value: float | Tensor, q: Tensor) -> Tensor:
    """Return a strength as one contiguous fp32 number per row.

    A tensor on a GPU is not checked, since reading it would synchronize; every other strength is.

    Args:
        name: the argument's name.
        value: a number for all rows, also as a 0-dimensional tensor, or `[B]`.
        q: `[B, H, N, d]`; gives the number of rows and the device.

    Raises:
        ValueError: it is not finite, or has another shape.
    """
    if isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu" and has_values(value):
        value = float(value)  # as everywhere in PyTorch, a CPU scalar works with tensors on any device
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return torch.full((q.shape[0],), float(value), dtype=torch.float32, device=q.device)
    if tuple(value.shape) not in ((), (q.shape[0],)):
        raise ValueError(f"{name} must be a number or [{q.shape[0]}], one number per row of q, got {_shape(value)}")
    if value.device != q.device:
        raise ValueError(f"{name} must be on {q.device} as q is, got {value.device}")
    if has_values(value) and value.device.type == "cpu" and not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got {value.tolist()}")
    return value.float().expand(q.shape[0]).contiguous()


def check_shift(name: str, shift: Tensor, q: Tensor) -> Tensor:
    """Return a shift that the caller computed, contiguous.

    Args:
        name: the argument's name.
        shift: `[B, H, d]` fp32.
        q: `[B, H, N, d]`; gives rows, heads, head size and device.

    Raises:
        TypeError: its dtype differs.
        ValueError: its shape or device differs.
    """
    rows, heads, _, d = q.shape
    if tuple(shift.shape) != (rows, heads, d):
        raise ValueError(f"{name} must be [{rows}, {heads}, {d}], one vector per row and head, got {_shape(shift)}")
    if shift.dtype != torch.float32:
        raise TypeError(f"{name} must be torch.float32, got {shift.dtype}")
    if shift.device != q.device:
        raise ValueError(f"{name} must be on {q.device} as q is, got {shift.device}")
    return shift.contiguous()


def logit_scale(scale: float | None, d: int) -> float:
    """Return the scale of the logits, 1/√d if none is given.

    Raises:
        ValueError: it is not a positive number.
    """
    if scale is None:
        return 1 / math.sqrt(d)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return scale


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor has values in memory; while tracing it has none."""
    real = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta
    return real and not torch.compiler.is_compiling()


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which the tensor's GPU is the current one: Triton always launches on the current GPU."""
    return torch.cuda.device(tensor.device) if has_values(tensor) and tensor.is_cuda else nullcontext()


def launchable(kernel: Any, tensor: Tensor) -> Any:
    """Return a kernel, wrapped so that PyTorch can trace it if the tensor is being traced.

    Triton's interpreter cannot be traced. A launch on real memory calls Triton directly: PyTorch's wrapper would keep
    the tensors of the descriptors alive.
    """
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) and not has_values(tensor) else kernel


def empty_output(q: Tensor) -> Tensor:
    """Return an output that is stored as `[B, N, H, d]`, so that the output projection needs no copy."""
    rows, heads, queries, d = q.shape
    return q.new_empty(rows, queries, heads, d).transpose(1, 2)


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"
