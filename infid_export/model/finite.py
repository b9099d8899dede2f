"""Checks that weights are finite in the dtype that they are used in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from infid_engines.errors import InputError


def require_finite(module: nn.Module, what: str, dtype: torch.dtype) -> nn.Module:
    """Return a module if all its weights are finite in a dtype.

    Args:
        module: module with weights in any dtype that can represent them.
        what: its name for the error, capitalized.
        dtype: dtype that the weights are used in.

    Raises:
        InputError: a weight is not finite; the message names it, and says if the dtype is the cause.
    """
    for name, value in _floating(module):
        require_finite_tensor(value, f"{what}: {name}", dtype)
    return module


def require_finite_tensor(value: Tensor, what: str, dtype: torch.dtype) -> None:
    """Check one weight, as in `require_finite`."""
    largest = float(value.abs().max()) if value.numel() else 0.0  # max() returns NaN if there is one
    if not largest < float("inf"):
        raise InputError(
            f"{what} contains non-finite values.", fix="Use an intact checkpoint; train or convert it again."
        )
    if largest > torch.finfo(dtype).max:
        raise InputError(
            f"{what} reaches {largest:.4g}, but fp16 ends at {torch.finfo(dtype).max:.0f}.",
            fix="Use fp32: `--precision fp32`, or without --fp16.",
        )


def not_finite(module: nn.Module) -> str | None:
    """Return the name of a weight that is not finite in its own dtype, or None."""
    return next((name for name, value in _floating(module) if not bool(value.isfinite().all())), None)


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, value in tensors:
            if value.is_floating_point() and not value.is_meta:
                yield name, value.detach()
