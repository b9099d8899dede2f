"""The tolerances: how much a graph may differ from the reference, relative to the RMS of the reference output.

The reference is PyTorch in fp32 on the unrounded weights. Rounding weights and activations to fp16 (11 bits) moves
each value by up to 4.9e-4 of itself. The depth of a network, and guidance, which multiplies differences by five,
increase this to the values in the table of docs/parity.md: up to 2.2e-3 RMS and 8.2e-3 maximum for full-size random
weights, 8.7e-4 and 1.1e-2 for the demo model. In fp32, the demo model has 9.5e-7 and 8.0e-6. The limits have to catch
these faults in the demo model's step: λ = 1 instead of 0.875 changes the output by 1.0e-2 RMS, s = 1 instead of 0.75 by
1.5e-2, and one of its 11 identity blocks without effect by 6.1e-3 to 4.9e-2. The limit for fp16 is between both: nearly
twice the full-size measurement, and below all of these faults (tests/export/test_tolerances.py).
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """Largest single error and RMS error, both relative to the reference's RMS."""

    max: float
    rms: float


VERSION = 3
PSNR_DB = {"fp16": 40.0, "fp32": 60.0}

_FP32 = Tolerance(max=5e-4, rms=1e-4)
_FP16 = Tolerance(max=5e-2, rms=4e-3)


def tolerance(precision: str) -> Tolerance:
    """Return the tolerance for graphs of a precision, `fp16` or `fp32`."""
    return {"fp32": _FP32, "fp16": _FP16}[precision]
