"""What `gpu_suite.py` measures, most important first: the list of items, each with its name, seconds and measurement.

The first command runs the items of phase 1, the second those of phase 2.
"""

from __future__ import annotations

from functools import partial

from benchmarks.kernels import bundles, candidates, checks, precompile, speeds
from benchmarks.model import product, steps
from benchmarks.suite import machine
from benchmarks.suite.bench import Item, Workload


def items(workload: Workload, quick: bool, architecture: str = "sm_90") -> list[Item]:
    """Return everything that is measured, the most important first.

    Args:
        workload: what is measured.
        quick: fewer candidates.
        architecture: the architecture whose candidates are tried; sm_90 has the most.
    """
    return [
        Item("clocks", 3.0, machine.clocks, always=True),
        *precompile.items(1),
        *checks.correctness(workload, "float16", 1),
        Item("ceilings", 3.0, speeds.ceilings, always=True),
        *speeds.items(workload, "float16", 1),
        *candidates.items(workload, quick, architecture),
        *(
            Item(f"tuned {name} float16", 0.6, partial(speeds.tuned, name), call.op)
            for name, call in workload.calls.items()
        ),
        *speeds.mean_shifts(workload),
        *steps.items(workload),
        *speeds.compiled(),
        *bundles.items(workload),
        Item("race", 0.5, checks.race, decides=True),
        *precompile.items(2),
        *checks.correctness(workload, "bfloat16", 2),
        *speeds.items(workload, "bfloat16", 2),
        *product.items(),
        *checks.sanitizers(),
    ]
