"""Print the resources and instructions of the kernels on every architecture, from their machine code; needs no GPU.

There is one row for every entry of the tuning table, and for the mean shifts; with --forms, one for every candidate of
mixed attention in another form than the plain one. The columns are registers and spilled bytes per thread, shared
memory per block, matrix instructions and the groups in which they are issued (WARPGROUP.ARRIVE: as many as products
means that ptxas serialized them), TMA loads of a block (UTMALDG), instructions of the unit for exponentials and
divisions (MUFU), instructions of the main loops, and their narrowest and widest global load, in bytes per thread. Run
it without TRITON_INTERPRET.

Usage::

    python benchmarks/kernels/kernel_resources.py
    python benchmarks/kernels/kernel_resources.py --architecture sm_90 --head-size 40 80 96 --json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import triton

from infid_kernels import mean_shift
from infid_kernels.autotune import label
from infid_kernels.compile import KERNELS, compile_code
from infid_kernels.sass import MATRIX_INSTRUCTION, read_machine_code
from infid_kernels.targets import ARCHITECTURES, DTYPES, HEAD_SIZES, TUNED_HEAD_SIZES
from infid_kernels.tuning import GLUON_CANDIDATES, Configuration, candidates, table

_COLUMNS = ("op", "architecture", "d", "lengths", "configuration", "registers", "stack", "shared", "matrix", "groups",
            "copies", "MUFU", "loop", "loads")  # fmt: skip
_MOST_JOBS = 4  # each holds torch and LLVM, about 1 GB
Case = tuple[str, str, int, bool | None, int, Configuration]


def main() -> None:
    """Print the table, with progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, metavar="SM")
    parser.add_argument("--head-size", nargs="+", type=int, choices=HEAD_SIZES, default=TUNED_HEAD_SIZES, metavar="N")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--op", nargs="+", choices=tuple(KERNELS), default=tuple(KERNELS), metavar="OP")
    parser.add_argument("--forms", action="store_true", help="the candidates in other forms than the plain one")
    jobs = min(_MOST_JOBS, len(os.sched_getaffinity(0)))
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"processes ({jobs} here)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    make = _forms if arguments.forms else _cases
    cases = [case for case in make(arguments.architecture, arguments.head_size) if case[0] in arguments.op]
    rows, started = [], time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(functools.partial(_row, arguments.dtype), cases):
            rows.append(row)
            left = (time.monotonic() - started) / len(rows) * (len(cases) - len(rows))
            print(f"{len(rows)}/{len(cases)} {row['op']} {row['architecture']} {row['head_size']}, "
                  f"{left:.0f} s left", file=sys.stderr)  # fmt: skip
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)


def _cases(architectures: Sequence[str], head_sizes: Sequence[int]) -> Iterator[Case]:
    for architecture in architectures:
        for d in head_sizes:
            for op in ("mean_shift", "value_shift"):
                yield op, architecture, d, None, 0, mean_shift.CONFIGURATION
            for entry in table():
                mine = (entry.architecture, entry.block_d) == (architecture, triton.next_power_of_2(d))
                if mine and isinstance(entry.configuration, Configuration):
                    configuration = entry.configuration
                    if configuration.gluon and d not in GLUON_CANDIDATES:  # as `mixed_attention_choice` does
                        configuration = replace(configuration, gluon=False, descriptors=True)
                    yield entry.op, architecture, d, entry.even_n, entry.queries, configuration


def _forms(architectures: Sequence[str], head_sizes: Sequence[int]) -> Iterator[Case]:
    for architecture in architectures:
        for d in head_sizes:
            for candidate in candidates("mixed_attention", architecture):
                if candidate != candidate.plain:
                    for even_n in (True, False):
                        yield "mixed_attention", architecture, d, even_n, 0, candidate
            for candidate in GLUON_CANDIDATES.get(d, ()) if architecture == "sm_90" else ():
                yield "mixed_attention", architecture, d, True, 0, candidate  # it has no masks


def _row(dtype: str, case: Case) -> dict[str, Any]:
    op, architecture, d, even_n, queries, configuration = case
    compiled = compile_code(op, architecture, d, configuration, dtype, bool(even_n))
    code = read_machine_code(compiled.asm["cubin"])
    narrowest, widest = code.loop_load_bytes()
    return {
        "op": op, "architecture": architecture, "dtype": dtype, "head_size": d, "even_n": even_n, "queries": queries,
        "configuration": asdict(configuration), "registers": code.registers, "stack_bytes": code.stack_bytes,
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": {name: code.count(name) for name in sorted(set(MATRIX_INSTRUCTION.values()))},
        "product_groups": code.product_groups, "loop_instructions": sum(code.loop.values()),
        "block_copies": code.count("UTMALDG"), "exponentials": code.count("MUFU"),
        "narrowest_loop_load": narrowest, "widest_loop_load": widest, "global_loads": code.global_loads(),
        "triton": triton.__version__,
    }  # fmt: skip


def _print(rows: Sequence[dict[str, Any]]) -> None:
    cells = [
        (row["op"], row["architecture"], str(row["head_size"]), "full blocks" if row["even_n"] else "any",
         label(Configuration(**row["configuration"])), str(row["registers"]), str(row["stack_bytes"]),
         str(row["shared_bytes"]),
         " ".join(f"{count} {name}" for name, count in row["matrix_instructions"].items() if count) or "-",
         str(row["product_groups"]), str(row["block_copies"]), str(row["exponentials"]),
         str(row["loop_instructions"]),
         f"{row['narrowest_loop_load']}-{row['widest_loop_load']} B")
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    for line in (_COLUMNS, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
