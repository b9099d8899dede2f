"""What the kernels are compiled for: GPU architectures, dtypes and head sizes.

Imports nothing heavy, since the command line reads them for its help.
"""

from __future__ import annotations

from collections.abc import Mapping

# Ampere (A100, GeForce), Ada, Hopper, Blackwell (B200, GeForce). Another GPU uses the newest that is older than itself.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# Dtypes of queries, keys and values: torch's names to Triton's names.
DTYPES: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16"}
HEAD_SIZES = (32, 40, 64, 80, 96, 128)
# Head sizes with their own entries in the tuning table; the others use the entries of the next power of two.
TUNED_HEAD_SIZES = (32, 64, 128)
