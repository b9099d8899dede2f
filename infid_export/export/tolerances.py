"""How much a graph may differ from the reference: one table, errors relative to the RMS of the reference output.

The reference is PyTorch in fp32 on the unrounded weights. Rounding weights and activations to fp16 (11 bits) moves
each value by up to 4.9e-4 of itself; through a network's depth, and guidance, which multiplies a difference by five,
this grows to what README's table shows (Parity): up to 2.6e-3 RMS and 1.1e-2 at the worst value in the demo model. In
fp32 the same measures 4.0e-6 and 1.8e-5. The limits leave a factor of four to five in fp16, more in fp32. What they
have to catch is larger: in the demo model's step, one of its 11 identity blocks without effect moves the output by
6.4e-2 RMS or more, and so does λ taken for 1 where 0.875 was asked for.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """Largest single error and RMS error, both relative to the reference's RMS."""

    max: float
    rms: float


VERSION = 2
PSNR_DB = {"fp16": 40.0, "fp32": 60.0}

_FP32 = Tolerance(max=5e-4, rms=1e-4)
_FP16 = Tolerance(max=5e-2, rms=1e-2)


def tolerance(precision: str) -> Tolerance:
    """Return the limits for graphs of a precision, `fp16` or `fp32`."""
    return {"fp32": _FP32, "fp16": _FP16}[precision]
