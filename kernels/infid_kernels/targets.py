"""What the kernels are compiled for: GPU architectures, dtypes and head sizes.

Imports nothing: the command line reads them for its help.
"""

from __future__ import annotations

from collections.abc import Mapping

# Ampere (A100, GeForce), Ada, Hopper, Blackwell (B200, GeForce). Another GPU uses the newest that is older than itself.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# Of queries, keys and values; names of torch to names of Triton.
DTYPES: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16"}
HEAD_SIZES = (32, 40, 64, 80, 96, 128)
# Those with entries of their own in the tuning table; the others use the entries of the next power of two.
TUNED_HEAD_SIZES = (32, 64, 128)
