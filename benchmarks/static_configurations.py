"""Write the kernels' table of configurations where no GPU is at hand: the first candidate that compiles well.

For every operation, architecture and head size it takes the first plain candidate that spills no register and fits the
architecture's shared memory, and writes that report as the evidence. Merged cross-attention of any length takes
blocks with the least padding of SDXL's keys; forms that are not plain have to be measured first. A measurement, where
there is one, is better evidence: `infid-export tune` makes it.

Usage::

    python benchmarks/static_configurations.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from infid_kernels.compile import compile_kernel
from infid_kernels.measure import SDXL_CALLS
from infid_kernels.sass import SHARED_LIMIT, MachineCode, read_machine_code
from infid_kernels.tuning import ARCHITECTURES, CANDIDATES, OPS, TABLE, Configuration, Entry, candidates, write
from roofline import padded

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
    plain = CANDIDATES if whole else [each for each in candidates(op, architecture) if each in CANDIDATES]
    for candidate in plain:
        shared, code = _report(op, architecture, d, whole, candidate)
        if code.stack_bytes == 0 and shared <= SHARED_LIMIT[architecture]:
            report = f"compiled: {code.registers} registers, no spills, {shared} bytes of shared memory"
            evidence = f"{report}{_padding(op, whole, candidate)}; not yet timed"
            return Entry(op, architecture, d, 0, whole, candidate, evidence)
    raise RuntimeError(f"every candidate of {op} spills on {architecture} with head size {d}")


def _padding(op: str, whole: bool, candidate: Configuration) -> str:
    """Return what padding speaks for a choice; only the lengths of merged cross-attention are always the same."""
    if op != "merged_cross_attention" or whole:
        return ""
    call = SDXL_CALLS["merged-4096"]
    works = {block_n: f"{padded(call, block_n):.2f} ×" for block_n in sorted({each.block_n for each in CANDIDATES})}
    chosen = works.pop(candidate.block_n)
    others = ", ".join(f"{work} with {block_n}" for block_n, work in works.items())
    return f"; blocks of {candidate.block_n} make {call.text} + {call.identity} keys {chosen} the work ({others})"


def _report(op: str, architecture: str, d: int, whole: bool, candidate: Configuration) -> tuple[int, MachineCode]:
    compiled = compile_kernel(op, architecture, d, candidate, whole=whole)
    return int(compiled.launch["shared_bytes"]), read_machine_code(compiled.cubin)


if __name__ == "__main__":
    main()
