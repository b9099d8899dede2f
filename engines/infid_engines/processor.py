"""The instruction sets of this machine's processor, for engines that are compiled for one. Imports are light."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# By the names that PyTorch uses (torch/_inductor/cpu_vec_isa.py), the processor flags behind them.
_FLAGS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl"),
    "avx512_vnni": ("avx512_vnni",),
    "amx_tile": ("amx_tile", "amx_bf16", "amx_int8"),
}


@cache
def instruction_sets() -> tuple[str, ...]:
    """Return the vector instruction sets of this processor, the narrowest first; empty if none is known."""
    flags: set[str] = set()
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            name, _, values = line.partition(":")
            if name.strip() == "flags":
                flags = set(values.split())
                break
    return tuple(name for name, needed in _FLAGS.items() if flags.issuperset(needed))


def cpu_target() -> str:
    """Return the name of this processor as a target, such as `cpu-avx512_vnni`: its widest instruction set."""
    return f"cpu-{(platform.machine(), *instruction_sets())[-1]}"


def missing_sets(names: Iterable[str]) -> list[str]:
    """Return which of the given instruction sets this processor lacks; an unknown one counts as missing."""
    return [name for name in names if name not in instruction_sets()]
