"""Properties of the kernels on real hardware, read from the machine code of every tuned configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import triton

from infid_kernels import sass
from infid_kernels.mean_shift import SPLITS
from infid_kernels.sass import MATRIX_INSTRUCTION, SHARED_LIMIT, load_bytes
from infid_kernels.targets import ARCHITECTURES, DTYPES, TUNED_HEAD_SIZES
from infid_kernels.tuning import GLUON_CANDIDATES, OPS, TABLE, candidates, table

PROGRAM = Path(__file__).parents[2] / "benchmarks/kernels/kernel_resources.py"
FORMS_FILE = PROGRAM.parents[1] / "results/kernel-forms.json"
FORMS = json.loads(FORMS_FILE.read_text())
STRENGTHS = {"mean_shift": 1, "value_shift": 1, "merged_cross_attention": 1}  # fp32 numbers that a program reads
SHIFTS = {"mixed_attention": 2, "merged_cross_attention": 1}  # each SPLITS × d fp32 numbers
Row = dict[str, Any]


@cache
def resources(*words: str) -> list[Row]:
    """Return the benchmark's rows, from a process that compiles; this one only has the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    command = [sys.executable, str(PROGRAM), *words, "--json"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return list(json.loads(found.stdout))


def kinds() -> list[Any]:
    """Return pairs of head size and type; bf16 uses the same table."""
    found = [(d, dtype) for dtype in DTYPES for d in TUNED_HEAD_SIZES]
    return [pytest.param(*each, marks=() if each == (64, "float16") else pytest.mark.slow) for each in found]


def fp32_loads(row: Row) -> dict[str, int]:
    """Return the expected number of loads narrower than 16 bytes; all of them are outside the main loops."""
    found = {"LDG.E": STRENGTHS[row["op"]]} if row["op"] in STRENGTHS else {}
    # with 256 threads and a head size of 32, each thread loads 8 bytes of a shift
    per_thread = SPLITS * row["head_size"] * 4 // (32 * row["configuration"]["num_warps"])
    return found | ({"LDG.E.64": SHIFTS[row["op"]]} if row["op"] in SHIFTS and per_thread == 8 else {})


def wrong(row: Row) -> list[str]:
    """Return the problems in a kernel's machine code, one phrase each."""
    found = []
    product = MATRIX_INSTRUCTION[row["architecture"]]
    if row["stack_bytes"]:
        found.append(f"{row['stack_bytes']} bytes of registers are spilled")
    if row["shared_bytes"] > SHARED_LIMIT[row["architecture"]]:
        found.append(f"{row['shared_bytes']} bytes of shared memory are more than the architecture has")
    products = {name for name, count in row["matrix_instructions"].items() if count}
    if products != ({product} if row["op"] in OPS else set()):
        found.append(f"it multiplies with {products or 'nothing'}, not {product}")
    if row["op"] == "mixed_attention" and product == "HGMMA":
        count, groups = row["matrix_instructions"][product], row["product_groups"]
        if 2 * groups >= count:
            found.append(f"its {count} products are issued in {groups} groups: they are serialized")
    copied = row["configuration"]["descriptors"] or row["configuration"].get("gluon", False)
    if copied != (row["block_copies"] > 0):
        found.append(f"TMA fetches {row['block_copies']} blocks")
    if not row["narrowest_loop_load"] == row["widest_loop_load"] == (0 if copied else 16):
        found.append(f"keys and values are read {row['narrowest_loop_load']} bytes at a time")
    narrow = {name: count for name, count in row["global_loads"].items() if load_bytes(name) != 16}
    if narrow != fp32_loads(row):
        found.append(f"besides the strengths and shifts there are narrow loads: {narrow}")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("d", "dtype"), kinds())
def test_every_tuned_configuration_is_good_machine_code(d: int, dtype: str, architecture: str) -> None:
    found = resources("--head-size", str(d), "--dtype", dtype)
    rows = [row for row in found if row["architecture"] == architecture]
    entries = [entry for entry in table() if (entry.architecture, entry.block_d) == (architecture, d)]
    assert len(rows) == len(entries) + 2  # and the mean shifts
    faults = {(row["op"], row["even_n"], row["queries"]): wrong(row) for row in rows}
    assert {case: found for case, found in faults.items() if found} == {}


@pytest.mark.parametrize("architecture", ["sm_90"])
def test_every_form_for_tma_is_good_machine_code(architecture: str) -> None:
    rows = resources("--forms", "--head-size", "64", "--architecture", architecture)
    tried = [each for each in candidates("mixed_attention", architecture) if each != each.plain]
    assert len(rows) == 2 * len(tried) + len(GLUON_CANDIDATES[64]) >= 17  # full blocks and any length; Gluon: full
    if triton.__version__ == FORMS[0]["triton"]:  # another compiler may well need a different number of registers
        assert rows == FORMS, f"write {FORMS_FILE} again, and run benchmarks/kernels/roofline.py"
    faults = {(str(row["configuration"]), row["even_n"]): wrong(row) for row in rows}
    assert {case: found for case, found in faults.items() if found} == {}


def test_the_table_covers_every_call() -> None:
    grid = {(op, architecture, d, even_n) for op in OPS for architecture in ARCHITECTURES for d in TUNED_HEAD_SIZES
            for even_n in (True, False)}  # fmt: skip
    present = {(each.op, each.architecture, each.block_d, each.even_n) for each in table() if each.queries == 0}
    assert sorted(grid - present) == [], f"missing in {TABLE.name}"


# Compiles each operation as torch.compile declares its arguments: Python's floats as fp64 (torch 2.11).
DECLARED = """
from infid_kernels import compile
from infid_kernels.tuning import OPS, Configuration

constants, arguments = compile._constants, compile._arguments

def without_scale(*given):
    return {name: value for name, value in constants(*given).items() if name != "logit_scale"}

def declared(*given):
    return [{**each, "type": "fp64"} if each["name"] == "logit_scale" else each for each in arguments(*given)]

compile._constants, compile._arguments = without_scale, declared
for op in OPS:
    for even_n in (True, False):
        made = compile.compile_code(op, "sm_90", 64, Configuration(64, 64, 4, 3), even_n=even_n)
        print(".f64" in "".join(line for line in made.asm["ptx"].splitlines() if "fma" in line or "mul" in line))
"""


def test_a_scale_declared_as_float64_is_narrowed_once() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    command = [sys.executable, "-c", DECLARED]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["False"] * 4  # no arithmetic in fp64


@pytest.mark.parametrize("d", [40, 80, 96])
def test_other_head_sizes_compile(d: int) -> None:
    """They use the tiles of the next power of two, which may spill: the table is tuned for powers of two."""
    rows = resources("--head-size", str(d), "--architecture", "sm_90", "--op", "mixed_attention")
    assert {row["even_n"] for row in rows} == {True, False}
    for row in rows:
        assert [fault for fault in wrong(row) if "spilled" not in fault] == []


GOOD: Row = {
    "op": "merged_cross_attention", "architecture": "sm_90", "configuration": {"descriptors": False, "num_warps": 8},
    "block_copies": 0, "stack_bytes": 0, "shared_bytes": 99328,
    "matrix_instructions": {"HGMMA": 24, "HMMA": 0, "UTCHMMA": 0}, "product_groups": 24,
    "narrowest_loop_load": 16, "widest_loop_load": 16,
    "head_size": 64, "global_loads": {"LDG.E.128": 4, "LDGSTS.E.BYPASS.128": 48, "LDG.E": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, []),
        ({"stack_bytes": 8}, ["8 bytes of registers are spilled"]),
        ({"architecture": "sm_90", "shared_bytes": 232449}, ["more than the architecture has"]),
        ({"matrix_instructions": {"HMMA": 256}}, ["it multiplies with {'HMMA'}, not HGMMA"]),
        ({"matrix_instructions": {}}, ["it multiplies with nothing, not HGMMA"]),
        ({"narrowest_loop_load": 2}, ["read 2 bytes at a time"]),
        ({"narrowest_loop_load": 0, "widest_loop_load": 0}, ["read 0 bytes at a time"]),
        ({"block_copies": 8}, ["TMA fetches 8 blocks"]),
        (
            {"op": "mixed_attention", "global_loads": {"LDG.E.128": 4}, "product_groups": 12},
            ["its 24 products are issued in 12 groups: they are serialized"],
        ),
        ({"op": "mixed_attention", "global_loads": {"LDG.E.128": 4}, "product_groups": 4}, []),
        (
            {"configuration": {"descriptors": True, "num_warps": 8}, "narrowest_loop_load": 0, "widest_loop_load": 0},
            ["TMA fetches 0 blocks"],
        ),
        (
            {"configuration": {"descriptors": True, "num_warps": 8}, "block_copies": 8},
            ["keys and values are read 16 bytes at a time"],
        ),
        ({"global_loads": GOOD["global_loads"] | {"LDG.E.U16": 3}}, ["narrow loads: {'LDG.E': 1, 'LDG.E.U16': 3}"]),
        ({"global_loads": GOOD["global_loads"] | {"LDGSTS.E.64": 1}}, ["narrow loads"]),
    ],
)
def test_bad_machine_code_is_reported(change: Row, says: list[str]) -> None:
    found = wrong(GOOD | change)
    assert len(found) == len(says)
    assert all(part in fault for part, fault in zip(says, found, strict=True))


def test_the_width_of_a_load() -> None:
    widths = {"LDG.E": 4, "LDG.E.128": 16, "LDG.E.U16": 2, "LDG.E.U16.CONSTANT": 2, "LDG.E.64": 8, "LDG.E.S8": 1,
              "LDGSTS.E.BYPASS.128": 16, "LDGSTS.E.BYPASS.LTC128B.128": 16, "LDG.E.ENL2.256": 32}  # fmt: skip
    assert {name: load_bytes(name) for name in widths} == widths


LISTING = """
        /*0000*/                   LDG.E R1, desc[UR4][R2.64] ;       /* 0x0 */
        /*0010*/              @!P4 BRA 0x0050 ;                       /* 0x0 */
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;   /* 0x0 */
        /*0030*/                   HMMA.16816.F32 R4, R4, R4, R4 ;    /* 0x0 */
        /*0040*/               @P0 BRA 0x0020 ;                       /* 0x0 */
        /*0050*/                   LDG.E.64 R4, desc[UR4][R2.64] ;    /* 0x0 */
        /*0060*/                   HMMA.16816.F32 R4, R4, R4, R4 ;    /* 0x0 */
        /*0070*/               @P1 BRA 0x0000 ;                       /* 0x0 */
        /*0080*/                   EXIT ;                             /* 0x0 */
        /*0090*/               @P2 BRA 0x0090 ;                       /* 0x0 */
        /*00a0*/                   BRA 0x0060 ;                       /* 0x0 */
"""


def test_the_main_loop_is_the_innermost_that_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"--dump-resource-usage": "REG:128 STACK:0 SHARED:0", "-sass": LISTING}
    monkeypatch.setattr(sass, "_cuobjdump", lambda what, _: texts[what])
    code = sass.read_machine_code(b"")
    assert code.loop == {"LDG.E.128": 1, "HMMA.16816.F32": 1, "BRA": 1}
    assert code.loop_load_bytes() == (16, 16)
    assert code.global_loads() == {"LDG.E": 1, "LDG.E.128": 1, "LDG.E.64": 1}
    texts["-sass"] = LISTING.replace("HMMA.16816.F32", "FFMA")
    assert sass.read_machine_code(b"").loop == {"LDG.E.128": 1, "FFMA": 1, "BRA": 1}
