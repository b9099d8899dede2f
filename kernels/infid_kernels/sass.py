"""What a compiled kernel uses and does, read from its machine code with the tools in Triton's own wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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
# The instruction that multiplies matrices.
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
    """What the disassembly and the resource report say.

    Args:
        registers: of one thread.
        stack_bytes: of one thread; more than 0 means spilled registers.
        instructions: how often each occurs, with its modifiers (`LDG.E.128`).
    """

    registers: int
    stack_bytes: int
    instructions: Mapping[str, int]

    def count(self, name: str) -> int:
        """Return how often an instruction occurs, whatever its modifiers."""
        return sum(count for full, count in self.instructions.items() if full.split(".")[0] == name)

    def global_loads(self) -> dict[str, int]:
        """Return the loads from global memory, into registers or shared memory, by their full names."""
        return {full: count for full, count in self.instructions.items() if full.split(".")[0] in ("LDG", "LDGSTS")}


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
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", listing)
    return MachineCode(int(registers[1]), int(stack[1]), Counter(names))


def _cuobjdump(*arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout
