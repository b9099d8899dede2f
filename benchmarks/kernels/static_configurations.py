"""Write the kernels' tuning table without a GPU, from the candidates that compile best.

Where a result of `gpu_suite.py` in benchmarks/results has correct candidates, the fastest is chosen (no library: that
is left to `infid-export tune` on the user's machine). Elsewhere a candidate must spill no register and fit into the
architecture's shared memory; its compiler report is stored as the evidence. On Hopper, ptxas must also not have
serialized its products, and of the remaining candidates, including those with descriptors, the one with the fewest
estimated clocks is chosen (`estimate`). On other architectures it is the first plain candidate (for merged
cross-attention in order of the least padding of SDXL's keys); other forms have to be measured first. A case has a
second entry in plain form where the first is not plain.

Usage::

    python benchmarks/kernels/static_configurations.py [--architecture sm_90]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.kernels import roofline
from benchmarks.kernels.candidates import entries
from benchmarks.kernels.roofline import EXPONENTIALS_PER_CLOCK, GPUS, at_once, padded
from benchmarks.suite.bench import WORKLOADS
from benchmarks.suite.report import results
from infid_kernels.compile import compile_code
from infid_kernels.measure import SDXL_CALLS, Call
from infid_kernels.sass import SHARED_LIMIT, MachineCode, read_machine_code
from infid_kernels.targets import ARCHITECTURES, TUNED_HEAD_SIZES
from infid_kernels.tuning import (
    CANDIDATES,
    OPS,
    TABLE,
    Configuration,
    Entry,
    candidates,
    nearest,
    runs,
    table,
    write,
)

_HOPPER = "sm_90"
_ISSUED_PER_CLOCK = 4  # instructions per SM, one per scheduler
_STAND_FOR = {"mixed_attention": SDXL_CALLS["mixed-1024"], "merged_cross_attention": SDXL_CALLS["merged-1024"]}


def main() -> None:
    """Write the table, with progress on stderr."""
    parser = argparse.ArgumentParser(description="Choose tile sizes by what the compiler reports.")
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, metavar="SM",
                        help="others keep their entries")  # fmt: skip
    wanted = parser.parse_args().architecture
    made, timed = _by_case(table()), _by_case(measured())
    cases, started = [case for case in _cases(ARCHITECTURES) if case[1] in wanted], time.monotonic()
    for index, case in enumerate(cases):
        made[case] = timed.get(case) or _choose(*case)
        left = (time.monotonic() - started) / (index + 1) * (len(cases) - index - 1)
        print(f"{index + 1}/{len(cases)} {case}: {made[case][0].configuration}, {left:.0f} s left", file=sys.stderr)
    write(TABLE, [entry for case in _cases(ARCHITECTURES) for entry in made[case]])


def measured() -> list[Entry]:
    """Return the entries of our kernels that follow from the results of `gpu_suite.py`."""
    found = []
    for document in roofline.results():
        architecture = nearest(document["gpu"]["architecture"])
        origin = f"{document['gpu']['name']}, triton {document['triton']}"
        found += entries(WORKLOADS[document["model"]], results(document), architecture, origin)
    return [each for each in found if isinstance(each.configuration, Configuration)]


def _by_case(found: Sequence[Entry]) -> dict[tuple[str, str, int, bool], list[Entry]]:
    cases: dict[tuple[str, str, int, bool], list[Entry]] = {}
    for each in found:
        cases.setdefault((each.op, each.architecture, each.block_d, each.even_n), []).append(each)
    return cases


def _cases(architectures: Sequence[str]) -> Iterator[tuple[str, str, int, bool]]:
    for op in OPS:
        for architecture in architectures:
            for d in TUNED_HEAD_SIZES:
                for even_n in (True, False):
                    yield op, architecture, d, even_n


def _choose(op: str, architecture: str, d: int, even_n: bool) -> list[Entry]:
    """Return the best entry by the compiler's reports, and if that is not in plain form, the best that is."""
    if architecture == _HOPPER:
        every = candidates(op, _HOPPER)
        best = _fewest_clocks(op, d, even_n, every)
        if runs(best.configuration, "plain"):
            return [best]
        return [best, _fewest_clocks(op, d, even_n, [each for each in every if runs(each, "plain")])]
    plain: Sequence[Configuration] = (
        CANDIDATES if even_n else [each for each in candidates(op, architecture) if each in CANDIDATES]
    )
    for candidate in plain:
        shared, code = _report(op, architecture, d, even_n, candidate)
        if code.stack_bytes == 0 and shared <= SHARED_LIMIT[architecture]:
            evidence = f"{_said(code, shared)}{_padding(op, even_n, candidate)}; not yet timed"
            return [Entry(op, architecture, d, 0, even_n, candidate, evidence)]
    raise RuntimeError(f"every candidate of {op} spills on {architecture} with head size {d}")


def _fewest_clocks(op: str, d: int, even_n: bool, tried: Sequence[Configuration]) -> Entry:
    """Return the entry of the candidate with the fewest estimated clocks on Hopper; the first one in a tie."""
    good: dict[Configuration, tuple[float, str]] = {}
    call = replace(_STAND_FOR[op], d=d)
    for candidate in tried:
        shared, code = _report(op, _HOPPER, d, even_n, candidate)
        products = code.count("HGMMA")
        if code.stack_bytes or shared > SHARED_LIMIT[_HOPPER] or 2 * code.product_groups >= products:
            continue
        programs = at_once(candidate.num_warps, code.registers, shared)
        overlap = f"{programs} programs per SM, {products} products in {code.product_groups} groups"
        good[candidate] = (estimate(call, candidate, code, programs), f"{_said(code, shared)}, {overlap}")
    best = min(good, key=lambda each: good[each][0])
    clocks, report = good[best]
    return Entry(op, _HOPPER, d, 0, even_n, best, f"{report}, about {clocks:.0f} clocks per query; not yet timed")


def estimate(call: Call, candidate: Configuration, code: MachineCode, programs: int) -> float:
    """Estimate the clocks of a Hopper SM per query, from the units' rates and the instructions of the main loops.

    Products, exponentials and instruction issue each take time. Within a program, plain Triton does one after the
    other; between the programs of an SM they overlap. So the busiest unit counts in full, and the time of the others is
    divided by `programs`. The estimate ranks candidates; it does not predict times.

    Args:
        call: gives lengths and head size.
        candidate: tile sizes.
        code: the kernel's machine code.
        programs: number of programs that an SM holds at once.
    """
    blocks = sum(math.ceil(length / candidate.block_n) for length in call.lengths)
    logits = candidate.block_m * candidate.block_n * blocks
    hopper = GPUS[0]
    units = (
        4 * logits * call.d / hopper.flops_per_clock,
        logits / EXPONENTIALS_PER_CLOCK,
        sum(code.loop.values()) / 2 * blocks * candidate.num_warps / _ISSUED_PER_CLOCK,  # a main loop per segment
    )
    busiest = max(units)
    return (busiest + (sum(units) - busiest) / programs) / candidate.block_m


def _said(code: MachineCode, shared: int) -> str:
    return f"compiled: {code.registers} registers, no spills, {shared} bytes of shared memory"


def _padding(op: str, even_n: bool, candidate: Configuration) -> str:
    """Return how padding supports a choice; only merged cross-attention always has the same lengths."""
    if op != "merged_cross_attention" or even_n:
        return ""
    call = SDXL_CALLS["merged-4096"]
    works = {block_n: f"{padded(call, block_n):.2f} ×" for block_n in sorted({each.block_n for each in CANDIDATES})}
    chosen = works.pop(candidate.block_n)
    others = ", ".join(f"{work} with {block_n}" for block_n, work in works.items())
    return f"; blocks of {candidate.block_n} make {call.text} + {call.identity} keys {chosen} the work ({others})"


def _report(op: str, architecture: str, d: int, even_n: bool, candidate: Configuration) -> tuple[int, MachineCode]:
    compiled = compile_code(op, architecture, d, candidate, even_n=even_n)
    return int(compiled.metadata.shared), read_machine_code(compiled.asm["cubin"])


if __name__ == "__main__":
    main()
