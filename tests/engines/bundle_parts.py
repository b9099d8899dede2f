"""Stand-ins for compiled kernels, to test bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Compiled:
    ptx: str
    cubin: bytes
    launch: Mapping[str, Any]


def compiled(
    op: str = "mixed_attention",
    architecture: str = "sm_80",
    *,
    ptx_target: str | None = None,
    tiles: tuple[int, int, int, int] = (128, 64, 4, 2),
    even_n: bool | None = True,
    shared: int = 49152,
    queries: Sequence[int] = (0,),
    dtype: str = "float16",
    head_size: int = 64,
) -> Compiled:
    """Return a stand-in for a kernel; its code says which one it is."""
    number = int(architecture.removeprefix("sm_"))
    sizes = dict(zip(("block_m", "block_n", "num_warps", "num_stages"), tiles, strict=True))
    shape = ["rows", "queries", "heads", str(head_size)]
    launch = {
        "op": op, "entry": f"{op}_kernel", "architecture": architecture,
        "ptx_target": ptx_target or f"{architecture}{'a' if number >= 90 else ''}", "dtype": dtype,
        "head_size": head_size, "configuration": sizes, "grid": ["(queries + 127) // 128", "rows * heads", "1"],
        "constants": {"BLOCK_N": tiles[1]} | ({} if even_n is None else {"EVEN_N": even_n}), "block": [128, 1, 1],
        "arguments": [
            {"name": "q", "type": "*fp16", "multiple_of": 16, "output": False, "shape": shape},
            {"name": "identity_length", "type": "i32", "multiple_of": 1, "value": "identity_length"},
            {"name": "text_length", "type": "i32", "multiple_of": 1, "value": "text_length"},
            {"name": "stride_qn", "type": "i32", "multiple_of": 16, "value": "heads * 64"},
            {"name": "out", "type": "*fp16", "multiple_of": 16, "output": True, "shape": shape},
        ],
        "multiples": dict.fromkeys(("identity_length", "text_length"), tiles[1]) if even_n else {},
        "scratch_pointers": 2, "shared_bytes": shared, "queries": list(queries),
    }  # fmt: skip
    name = f"{op} {architecture} {tiles} {even_n}"
    return Compiled(f"// {name}", name.encode(), launch)
