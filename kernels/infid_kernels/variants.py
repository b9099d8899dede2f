"""The compiled variants of an operation for one architecture, and the file that holds them for TensorRT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infid_kernels import mean_shift, tuning
from infid_kernels.compile import KERNELS, CompiledKernel, compile_kernel, with_parameters
from infid_kernels.sass import read_machine_code
from infid_kernels.tuning import Configuration

# Bytes of shared memory that a block has without opting in to more; TensorRT documents no way to opt in for a plugin.
DEFAULT_SHARED = 48 * 1024
# For head sizes where every candidate spills or needs more shared memory. Any lengths, triton 3.8: at most 227
# registers (sm_80, d = 128, merged), 26 624 bytes and no spills for d = 40, 80 and 96 on every architecture and for
# d = 128 on sm_80.
_SMALLEST = Configuration(32, 32, 8, 2)
_SCHEMA_VERSION = 3


def compile_variants(op: str, architecture: str, head_size: int, dtype: str = "float16") -> Iterator[CompiledKernel]:
    """Compile an operation for full blocks and for any length: with the tuned tiles, and with tiles that fit in 48 KB.

    `queries` of a launch description lists the entries of the tuning table with these tiles, by their smallest numbers
    of queries. It is empty for the variant within 48 KB of shared memory, which TensorRT times as another tactic.

    Args:
        op: a name in `infid_kernels.compile.KERNELS`.
        architecture: such as `sm_90`.
        head_size: d.
        dtype: `float16` or `bfloat16`.

    Yields:
        The variants, each once, in plain form.

    Raises:
        RuntimeError: the tuning table lacks the operation on this architecture.
    """
    if op not in tuning.OPS:
        yield _chosen_for(compile_kernel(op, architecture, head_size, mean_shift.CONFIGURATION, dtype), [0])
        return
    for even_n in (True, False):
        tuned = _tuned(op, architecture, head_size, even_n)
        if not tuned:
            raise RuntimeError(f"there is no configuration of {op} for {architecture} and head size {head_size}")
        for configuration, queries in tuned.items():
            compiled = compile_kernel(op, architecture, head_size, configuration, dtype, even_n)
            yield _chosen_for(compiled, queries)
        others = [candidate for candidate in (*tuning.CANDIDATES, _SMALLEST) if candidate not in tuned]
        yield _chosen_for(_within_default(op, architecture, head_size, dtype, even_n, others), [])


def _tuned(op: str, architecture: str, head_size: int, even_n: bool) -> dict[Configuration, list[int]]:
    """Return every tuned configuration in plain form, with the smallest numbers of queries that it applies to."""
    tuned: dict[Configuration, list[int]] = {}
    queries = sys.maxsize
    while queries >= 0:
        entry = tuning.entry(op, tuning.nearest(architecture), head_size, queries, even_n, only="plain")
        if entry is None:
            break
        assert isinstance(entry.configuration, Configuration)
        tuned.setdefault(entry.configuration, []).insert(0, entry.queries)
        queries = entry.queries - 1
    return tuned


def _chosen_for(compiled: CompiledKernel, queries: Sequence[int]) -> CompiledKernel:
    return replace(compiled, launch={**compiled.launch, "queries": list(queries)})


def _within_default(
    op: str, architecture: str, head_size: int, dtype: str, even_n: bool, candidates: Sequence[Configuration]
) -> CompiledKernel:
    for candidate in candidates:
        compiled = compile_kernel(op, architecture, head_size, candidate, dtype, even_n)
        small = compiled.launch["shared_bytes"] <= DEFAULT_SHARED
        if small and read_machine_code(compiled.cubin).stack_bytes == 0:
            return compiled
    raise RuntimeError(f"no candidate of {op} for {architecture} fits {DEFAULT_SHARED} bytes of shared memory")


def _plugin(compiled: CompiledKernel) -> dict[str, Any]:
    """Describe a kernel without the pointers to scratch memory that Triton appends: TensorRT does not pass them."""
    ptx = with_parameters(compiled.ptx, len(compiled.launch["arguments"]))
    return {"launch": {**compiled.launch, "scratch_pointers": 0}, "ptx": ptx}


def write_plugins(
    path: Path,
    architecture: str,
    head_sizes: Sequence[int],
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write the file of kernels that a TensorRT build takes as plugins: launch descriptions and PTX.

    Args:
        path: the file.
        architecture: such as `sm_90`.
        head_sizes: d of the model's attention layers.
        on_progress: called with the fraction done.
    """
    cases = [(op, d) for op in KERNELS for d in head_sizes]
    kernels = []
    for index, (op, d) in enumerate(cases):
        kernels += [_plugin(each) for each in compile_variants(op, architecture, d)]
        on_progress((index + 1) / len(cases))
    path.write_text(json.dumps({"schema_version": _SCHEMA_VERSION, "kernels": kernels}, indent=1) + "\n")
