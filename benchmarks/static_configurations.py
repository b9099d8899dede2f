"""Write the kernels' table of configurations where no GPU is at hand: the first candidate that compiles well.

For every operation, architecture and head size it takes the first of `tuning.CANDIDATES` that spills no register and
fits the architecture's shared memory, and writes that report as the evidence. A measurement, where there is one,
is better evidence: `infid-export tune` makes it.

Usage::

    python benchmarks/static_configurations.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from infid_kernels.compile import compile_kernel
from infid_kernels.sass import SHARED_LIMIT, MachineCode, read_machine_code
from infid_kernels.tuning import ARCHITECTURES, CANDIDATES, OPS, TABLE, Configuration, Entry, write

HEAD_SIZES = (32, 64, 128)


def main() -> None:
    """Write the table, with progress on stderr."""
    cases = list(_cases())
    entries, started = [], time.monotonic()
    for index, (op, architecture, d, whole) in enumerate(cases):
        entries.append(_choose(op, architecture, d, whole))
        left = (time.monotonic() - started) / (index + 1) * (len(cases) - index - 1)
        print(f"{index + 1}/{len(cases)} {op} {architecture} {d}: {entries[-1].configuration}, "
              f"{left:.0f} s left", file=sys.stderr)  # fmt: skip
        write(TABLE, entries)


def _cases() -> Iterator[tuple[str, str, int, bool]]:
    for op in OPS:
        for architecture in ARCHITECTURES:
            for d in HEAD_SIZES:
                for whole in (True, False):
                    yield op, architecture, d, whole


def _choose(op: str, architecture: str, d: int, whole: bool) -> Entry:
    for candidate in CANDIDATES:
        shared, code = _report(op, architecture, d, whole, candidate)
        if code.stack_bytes == 0 and shared <= SHARED_LIMIT[architecture]:
            evidence = (
                f"compiled: {code.registers} registers, no spills, {shared} bytes of shared memory; not yet timed"
            )
            return Entry(op, architecture, d, 0, whole, candidate, evidence)
    raise RuntimeError(f"every candidate of {op} spills on {architecture} with head size {d}")


def _report(op: str, architecture: str, d: int, whole: bool, candidate: Configuration) -> tuple[int, MachineCode]:
    compiled = compile_kernel(op, architecture, d, candidate, whole=whole)
    return int(compiled.launch["shared_bytes"]), read_machine_code(compiled.cubin)


if __name__ == "__main__":
    main()
