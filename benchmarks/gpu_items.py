"""What `gpu_suite.py` measures, in order of worth: a registry of items, each a name, its seconds, and its measurement.

The first command runs the items of phase 1, the second those of phase 2.
"""

from __future__ import annotations

from functools import partial

import gpu_candidates
import gpu_checks
import gpu_compile
import gpu_kernels
import gpu_machine
import gpu_model
from gpu_bench import Item, Workload

_SPEED_SECONDS = {"float16": 10.0, "bfloat16": 3.0}


def items(workload: Workload, quick: bool, architecture: str = "sm_90") -> list[Item]:
    """Return everything that is measured, in order of worth.

    Args:
        workload: what is measured.
        quick: fewer candidates.
        architecture: whose candidates are tried; sm_90 has the most.
    """
    model = gpu_model.items(workload)
    return [
        Item("clocks", 5.0, gpu_machine.clocks, always=True),
        *gpu_compile.items(1),
        *gpu_checks.correctness(workload, "float16", 1),
        Item("ceilings", 3.0, gpu_kernels.ceilings, always=True),
        *gpu_kernels.speeds(workload, "float16", 1, _SPEED_SECONDS["float16"]),
        *gpu_candidates.items(workload, quick, architecture),
        *(
            Item(f"tuned {name} float16", 2.0, partial(gpu_kernels.tuned, name), call.op)
            for name, call in workload.calls.items()
        ),
        *gpu_kernels.mean_shifts(workload),
        *(item for item in model if item.phase == 1),
        *gpu_kernels.compiled(),
        *gpu_kernels.bundles(workload),
        Item("race", 3.0, gpu_checks.race, decides=True),
        *(item for item in model if item.phase == 2),
        *gpu_compile.items(2),
        *gpu_checks.correctness(workload, "bfloat16", 2),
        *gpu_kernels.speeds(workload, "bfloat16", 2, _SPEED_SECONDS["bfloat16"]),
        *gpu_checks.sanitizers(),
    ]
