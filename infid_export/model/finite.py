"""Whether weights are finite numbers in the type that they are used in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from infid_engines.errors import InputError


def require_finite(module: nn.Module, what: str, dtype: torch.dtype) -> nn.Module:
    """Return a module if all its weights are finite in a type.

    Args:
        module: with weights in any type that holds their values.
        what: what the error calls it, with a capital letter.
        dtype: in which they are to be used.

    Raises:
        InputError: names the first weight that is not, and whether the type is to blame.
    """
    for name, value in _floating(module):
        require_finite_tensor(value, f"{what}: {name}", dtype)
    return module


def require_finite_tensor(value: Tensor, what: str, dtype: torch.dtype) -> None:
    """Check one weight, as in `require_finite`."""
    largest = float(value.abs().max()) if value.numel() else 0.0  # NaN is the largest of all
    if not largest < float("inf"):
        raise InputError(f"{what} has non-finite values.", fix="Use an intact checkpoint; train or convert it again.")
    if largest > torch.finfo(dtype).max:
        raise InputError(
            f"{what} reaches {largest:.4g}, but fp16 ends at {torch.finfo(dtype).max:.0f}.",
            fix="Use fp32: `--precision fp32`, or without --fp16.",
        )


def not_finite(module: nn.Module) -> str | None:
    """Return the name of a weight that is not finite as it is held, or None."""
    return next((name for name, value in _floating(module) if not bool(value.isfinite().all())), None)


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, value in tensors:
            if value.is_floating_point() and not value.is_meta:
                yield name, value.detach()
