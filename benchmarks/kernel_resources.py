"""Print what the kernels use and do on every architecture, read from their machine code: no GPU is needed.

One row for every entry of the tuning table, and for `mean_shift`: registers and spilled bytes of a thread, shared
memory of a block, instructions that multiply matrices, and the narrowest and widest global load of the main loops, in
bytes a thread. Run it without TRITON_INTERPRET.

Usage::

    python benchmarks/kernel_resources.py
    python benchmarks/kernel_resources.py --architecture sm_90 --head-size 40 80 96 --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import triton

from infid_kernels import mean_shift
from infid_kernels.arguments import HEAD_SIZES
from infid_kernels.compile import DTYPES, compile_kernel
from infid_kernels.sass import MATRIX_INSTRUCTION, read_machine_code
from infid_kernels.tuning import ARCHITECTURES, Configuration, table

_COLUMNS = ("op", "architecture", "d", "lengths", "configuration", "registers", "stack", "shared", "matrix", "loads")
Case = tuple[str, str, int, bool | None, int, Configuration]


def main() -> None:
    """Print the table, with progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, metavar="SM")
    parser.add_argument("--head-size", nargs="+", type=int, choices=HEAD_SIZES, default=(32, 64, 128), metavar="N")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    cases, rows, started = list(_cases(arguments.architecture, arguments.head_size)), [], time.monotonic()
    for index, case in enumerate(cases):
        rows.append(_row(arguments.dtype, *case))
        left = (time.monotonic() - started) / (index + 1) * (len(cases) - index - 1)
        print(f"{index + 1}/{len(cases)} {' '.join(map(str, case[:4]))}, {left:.0f} s left", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)


def _cases(architectures: Sequence[str], head_sizes: Sequence[int]) -> Iterator[Case]:
    for architecture in architectures:
        for d in head_sizes:
            yield "mean_shift", architecture, d, None, 0, mean_shift.CONFIGURATION
            for entry in table():
                if (entry.architecture, entry.block_d) == (architecture, triton.next_power_of_2(d)):
                    yield entry.op, architecture, d, entry.whole, entry.queries, entry.configuration


def _row(
    dtype: str, op: str, architecture: str, d: int, whole: bool | None, queries: int, configuration: Configuration
) -> dict[str, Any]:
    compiled = compile_kernel(op, architecture, d, configuration, dtype, bool(whole))
    code = read_machine_code(compiled.cubin)
    narrowest, widest = code.loop_load_bytes()
    return {
        "op": op, "architecture": architecture, "dtype": dtype, "head_size": d, "whole": whole, "queries": queries,
        "configuration": asdict(configuration), "registers": code.registers, "stack_bytes": code.stack_bytes,
        "shared_bytes": compiled.launch["shared_bytes"],
        "matrix_instructions": {name: code.count(name) for name in sorted(set(MATRIX_INSTRUCTION.values()))},
        "narrowest_loop_load": narrowest, "widest_loop_load": widest, "global_loads": code.global_loads(),
        "triton": triton.__version__,
    }  # fmt: skip


def _print(rows: Sequence[dict[str, Any]]) -> None:
    cells = [
        (row["op"], row["architecture"], str(row["head_size"]), "whole blocks" if row["whole"] else "any",
         "x".join(map(str, row["configuration"].values())), str(row["registers"]), str(row["stack_bytes"]),
         str(row["shared_bytes"]),
         " ".join(f"{count} {name}" for name, count in row["matrix_instructions"].items() if count) or "-",
         f"{row['narrowest_loop_load']}-{row['widest_loop_load']} B")
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    for line in (_COLUMNS, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
