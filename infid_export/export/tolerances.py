"""How much a graph may differ from the reference: one table, errors relative to the RMS of the reference output.

The reference is PyTorch in fp32 on the unrounded weights. Rounding weights and activations to fp16 (11 bits) moves
each value by up to 4.9e-4 of itself; through a network's depth this grows to about 1e-3 to 2e-3 RMS, measured on
both built-in models (README, Parity). fp32 against float64 measures below 1e-5. The limits leave a factor of about
five over what was measured, and are a hundredth of what one corrupted weight matrix does (see the tests).
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """Largest single error and RMS error, both relative to the reference's RMS."""

    max: float
    rms: float


VERSION = 1
PSNR_DB = {"fp16": 40.0, "fp32": 60.0}

_FP32 = Tolerance(max=5e-3, rms=1e-4)
_FP16 = Tolerance(max=1e-1, rms=1e-2)


def tolerance(precision: str) -> Tolerance:
    """Return the limits for graphs of a precision, `fp16` or `fp32`."""
    return {"fp32": _FP32, "fp16": _FP16}[precision]
