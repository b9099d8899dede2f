"""Resources and instructions of a compiled kernel, read from its SASS with the tools in Triton's wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import triton

# Shared memory of one block in bytes (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_LIMIT: Mapping[str, int] = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}
# The matrix multiplication instruction.
MATRIX_INSTRUCTION: Mapping[str, str] = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_89": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
}


@dataclass(frozen=True)
class MachineCode:
    """The disassembly and the resource report of a kernel.

    Args:
        registers: registers per thread.
        stack_bytes: stack per thread; more than 0 means spilled registers.
        instructions: count of each instruction, with its modifiers (`LDG.E.128`).
        loop: the same in the main loops only: the innermost loops that multiply matrices or, if none does, that load
            from global memory.
        loop_code: the instructions of the main loops in order, with operands (`LDG.E.128 R4, [R2.64]`).
    """

    registers: int
    stack_bytes: int
    instructions: Mapping[str, int]
    loop: Mapping[str, int] = field(default_factory=dict)
    loop_code: Sequence[str] = ()

    def count(self, name: str) -> int:
        """Return how often an instruction occurs, with any modifiers."""
        return sum(count for full, count in self.instructions.items() if full.split(".")[0] == name)

    @property
    def product_groups(self) -> int:
        """Number of groups of asynchronous matrix products (`WARPGROUP.ARRIVE`).

        If there are as many groups as products (`HGMMA`), ptxas serialized them: its warning C7515.
        """
        return sum(count for full, count in self.instructions.items() if full.startswith("WARPGROUP.ARRIVE"))

    def global_loads(self) -> dict[str, int]:
        """Return the loads from global memory, into registers or shared memory, by their full names."""
        return {full: count for full, count in self.instructions.items() if _loads(full)}

    def loop_load_bytes(self) -> tuple[int, int]:
        """Return the bytes per thread of the narrowest and the widest global load in the main loops."""
        widths = [load_bytes(full) for full in self.loop if _loads(full)]
        return min(widths, default=0), max(widths, default=0)


def load_bytes(name: str) -> int:
    """Return the bytes per thread of a load by its full name: 16 for `LDG.E.128`, 4 for `LDG.E`."""
    width = re.search(r"\.(?:[US])?(8|16|32|64|128|256)(?=\.|$)", name)
    return int(width[1]) // 8 if width else 4


def _loads(name: str) -> bool:
    return name.split(".")[0] in ("LDG", "LDGSTS")


def read_machine_code(cubin: bytes) -> MachineCode:
    """Disassemble a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        listing = _cuobjdump("-sass", file.name)
    registers, stack = (re.search(rf"{what}:(\d+)", usage) for what in ("REG", "STACK"))
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump reports no resources:\n{usage}")
    # "/*0a10*/  @!P0 LDG.E.128 R4, [R2.64] ;"
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);", listing)
    code = [(int(address, 16), name, operands) for address, name, operands in found]
    loops = _main_loops(code)
    inside = [(name, operands) for address, name, operands in code if any(address in loop for loop in loops)]
    return MachineCode(
        int(registers[1]), int(stack[1]), Counter(name for _, name, _ in code), Counter(name for name, _ in inside),
        [f"{name} {operands.strip()}" for name, operands in inside],
    )  # fmt: skip


def _main_loops(code: Sequence[tuple[int, str, str]]) -> list[range]:
    """Return the addresses of the innermost loops that multiply matrices or, if none does, that load.

    A loop is the code between a backward branch and its target, if it does not contain the kernel's end: on sm_100,
    code that waits for a barrier is placed after the end, and a branch back from there is not a loop.
    """
    products = tuple(MATRIX_INSTRUCTION.values())
    multiplies = any(name.split(".")[0] in products for _, name, _ in code)
    ranges = []
    for address, name, operands in code:
        target = re.search(r"\b0x([0-9a-f]+)\s*$", operands.strip()) if name.split(".")[0] == "BRA" else None
        if target is not None and int(target[1], 16) < address:
            ranges.append(range(int(target[1], 16), address + 1))
    found: list[range] = []
    for loop in sorted(ranges, key=len):
        names = [name for address, name, _ in code if address in loop]
        works = any(name.split(".")[0] in products if multiplies else _loads(name) for name in names)
        if works and "EXIT" not in names and not any(other.start in loop for other in found):
            found.append(loop)
    return found


def _cuobjdump(*arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout
