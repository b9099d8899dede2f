"""Ahead-of-time compilation, without a GPU: PTX, cubin and a launch description of one kernel.

The description holds everything that a launch needs, so that the CUDA driver API, TensorRT and C++ can launch a kernel
without Triton and torch: the arguments in order, the shape of every pointer in symbols and numbers, the grid and every
integer argument as expressions of those symbols, the divisors of symbols, block size, dynamic shared memory and
alignment. The order is input pointers, int32, output pointers, which TensorRT's ahead-of-time plugins require. Triton
appends pointers to scratch memory, which these kernels do not read; `with_parameters` removes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from infid_kernels import mixed_attention_gluon
from infid_kernels.mean_shift import SPLITS, mean_shift_kernel, value_shift_kernel
from infid_kernels.merged_cross_attention_triton import merged_cross_attention_kernel
from infid_kernels.mixed_attention_triton import mixed_attention_kernel
from infid_kernels.targets import DTYPES
from infid_kernels.tuning import Configuration

_SCHEMA_VERSION = 3
_ROWS, _HEADS, _LENGTH, _IDENTITY, _TEXT = "rows", "heads", "queries", "identity_length", "text_length"


@dataclass(frozen=True)
class KernelSpec:
    """The properties of a kernel that are the same on every target.

    Args:
        kernel: the Triton function.
        tensors: its pointers to tensors of the network's dtype, each with the prefix of its strides and the symbol of
            its number of tokens.
        floats: its pointers to fp32.
        outputs: names of its outputs, among the pointers.
        grid: expressions of the launch grid; `BLOCK_M` is replaced by the configuration's.
    """

    kernel: Any
    tensors: Mapping[str, tuple[str, str]]
    floats: tuple[str, ...]
    outputs: tuple[str, ...]
    grid: tuple[str, str]


_TILES = ("(queries + BLOCK_M - 1) // BLOCK_M", "rows * heads")
_SEGMENTS = {"k_id": ("k", _IDENTITY), "v_id": ("v", _IDENTITY), "k_t": ("kt", _TEXT), "v_t": ("vt", _TEXT)}
_QUERIES = {"q": ("q", _LENGTH), "out": ("o", _LENGTH)}
KERNELS: Mapping[str, KernelSpec] = {
    "mean_shift": KernelSpec(
        mean_shift_kernel, _SEGMENTS, ("strength", "shift_k", "shift_v"), ("shift_k", "shift_v"),
        (str(SPLITS), "rows * heads"),
    ),
    "value_shift": KernelSpec(
        value_shift_kernel, {"v_id": ("v", _IDENTITY), "v_t": ("vt", _TEXT)}, ("strength", "shift_v"), ("shift_v",),
        (str(SPLITS), "rows * heads"),
    ),
    "mixed_attention": KernelSpec(
        mixed_attention_kernel, _QUERIES | _SEGMENTS, ("shift_k", "shift_v"), ("out",), _TILES
    ),
    "merged_cross_attention": KernelSpec(
        merged_cross_attention_kernel, _QUERIES | _SEGMENTS, ("shift_v", "identity_strength"), ("out",), _TILES
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel compiled for one architecture.

    Args:
        ptx: its PTX.
        cubin: its machine code.
        launch: the launch description, plain JSON.
    """

    ptx: str
    cubin: bytes
    launch: Mapping[str, Any]


def compile_code(
    op: str,
    architecture: str,
    head_size: int,
    configuration: Configuration,
    dtype: str = "float16",
    even_n: bool = True,
    splits: int = SPLITS,
) -> Any:
    """Compile one kernel in any form, to inspect its machine code.

    Args: as `compile_kernel`.

    Returns:
        Triton's compiled kernel: `asm` and `metadata`.
    """
    if configuration.gluon:
        return compile_gluon(architecture, head_size, configuration, dtype, splits)
    spec = KERNELS[op]
    constants = _constants(spec, head_size, configuration, even_n, splits)
    arguments = _arguments(spec, constants, dtype, head_size, splits)
    block = f"1,1,{configuration.block_n},{constants['BLOCK_D']}"
    types = {argument["name"]: argument["type"] for argument in arguments}
    if configuration.descriptors:
        types |= dict.fromkeys(_SEGMENTS, f"tensordesc<{DTYPES[dtype]}[{block}]>")
    names = spec.kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(argument["name"]),): [["tt.divisibility", argument["multiple_of"]]]
        for argument in arguments
        if argument["multiple_of"] >= 8 and not types[argument["name"]].startswith("tensordesc")
    }
    # Without line information: it contains the paths of the build machine, so that no two machines would write the same
    # file, and it is most of a cubin (sm_90, mixed attention: 139 KB with it, 40 KB without).
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        return triton.compile(
            ASTSource(spec.kernel, signature, constants, aligned),
            target=GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32),
            options=configuration.launch_options(),
        )


def compile_gluon(
    architecture: str, head_size: int, configuration: Configuration, dtype: str = "float16", splits: int = SPLITS
) -> Any:
    """Compile the Gluon form of mixed attention, to inspect its machine code.

    Args:
        architecture: `sm_90`.
        head_size: d, 64 or 128.
        configuration: tile sizes.
        dtype: of queries, keys and values: `float16` or `bfloat16`.
        splits: number of parts of the mean shifts.

    Returns:
        Triton's compiled kernel: `asm` and `metadata`.

    Raises:
        RuntimeError: this Triton lacks the Gluon features that the kernel needs.
    """
    if mixed_attention_gluon.MISSING:
        raise RuntimeError(mixed_attention_gluon.MISSING)
    from triton.experimental.gluon._runtime import GluonASTSource

    from infid_kernels.attend_gluon import mixed_attention_gluon_kernel as kernel

    c = configuration
    constants = {"D": head_size, "SPLITS": splits, "BLOCK_M": c.block_m, "BLOCK_N": c.block_n, "STAGES": c.num_stages}
    layout = mixed_attention_gluon.shared_layout()
    pointers = {"shift_k": "*fp32", "shift_v": "*fp32", "out": f"*{DTYPES[dtype]}"}
    types = {
        "q": f"tensordesc<{DTYPES[dtype]}[{c.block_m}, {head_size}],{layout!r}>",
        "logit_scale": "fp32",
        **pointers,
    }
    types |= dict.fromkeys(_SEGMENTS, f"tensordesc<{DTYPES[dtype]}[{c.block_n}, {head_size}],{layout!r}>")
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name.startswith("stride_")}
    aligned |= {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        return triton.compile(
            GluonASTSource(kernel, signature, constants, aligned),
            target=GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32),
            options=c.launch_options(),
        )


def compile_kernel(
    op: str,
    architecture: str,
    head_size: int,
    configuration: Configuration,
    dtype: str = "float16",
    even_n: bool = True,
    splits: int = SPLITS,
) -> CompiledKernel:
    """Compile one kernel for tensors whose rows are 16-byte aligned, with the scale 1/√d.

    Args:
        op: a name in `KERNELS`.
        architecture: such as `sm_90`.
        head_size: d.
        configuration: tile sizes, in plain form.
        dtype: of queries, keys and values: `float16` or `bfloat16`.
        even_n: whether `block_n` divides the segments' lengths.
        splits: number of parts of the mean shifts.

    Returns:
        The compiled kernel and how to launch it.

    Raises:
        ValueError: the configuration has a form that a launch description cannot express.
    """
    if configuration != configuration.plain:
        raise ValueError(f"a launch description has no descriptors, got {configuration}; compile its plain form")
    spec = KERNELS[op]
    compiled = compile_code(op, architecture, head_size, configuration, dtype, even_n, splits)
    constants = _constants(spec, head_size, configuration, even_n, splits)
    arguments = _arguments(spec, constants, dtype, head_size, splits)
    launch = {
        "schema_version": _SCHEMA_VERSION,
        "op": op,
        "entry": compiled.metadata.name,
        "architecture": architecture,
        "ptx_target": ptx_target(compiled.asm["ptx"]),
        "dtype": dtype,
        "head_size": head_size,
        "configuration": configuration.to_dict(),
        "constants": constants,
        "arguments": arguments,
        "multiples": dict.fromkeys((_IDENTITY, _TEXT), configuration.block_n) if constants.get("EVEN_N") else {},
        "scratch_pointers": len(entry_parameters(compiled.asm["ptx"])) - len(arguments),
        "grid": [*(expression.replace("BLOCK_M", str(configuration.block_m)) for expression in spec.grid), "1"],
        "block": [32 * compiled.metadata.num_warps, 1, 1],
        "shared_bytes": compiled.metadata.shared,
        "triton": triton.__version__,
    }
    return CompiledKernel(compiled.asm["ptx"], compiled.asm["cubin"], launch)


def _constants(
    spec: KernelSpec, head_size: int, configuration: Configuration, even_n: bool, splits: int
) -> dict[str, float]:
    """Return the values of the kernel's constexpr arguments."""
    known = {
        "D": head_size,
        "BLOCK_D": triton.next_power_of_2(head_size),
        "SPLITS": splits,
        "BLOCK_M": configuration.block_m,
        "BLOCK_N": configuration.block_n,
        "EVEN_N": even_n,
        "DESCRIPTORS": configuration.descriptors,
        "logit_scale": 1 / math.sqrt(head_size),
    }
    return {name: known[name] for name in spec.kernel.arg_names if name in known}


def _arguments(
    spec: KernelSpec, constants: Mapping[str, float], dtype: str, head_size: int, splits: int
) -> list[dict[str, Any]]:
    """Describe the other arguments, in order."""
    return [_argument(spec, name, dtype, head_size, splits) for name in spec.kernel.arg_names if name not in constants]


def _argument(spec: KernelSpec, name: str, dtype: str, head_size: int, splits: int) -> dict[str, Any]:
    """Describe one argument: type, divisor (bytes or elements), the shape of a pointer, the value of an integer.

    The value of a stride is that of a tensor stored as `[B, N, H, d]`; a launch may pass another.
    """
    output = name in spec.outputs
    if name in spec.tensors:
        shape = [_ROWS, spec.tensors[name][1], _HEADS, str(head_size)]
        return {"name": name, "type": f"*{DTYPES[dtype]}", "multiple_of": 16, "output": output, "shape": shape}
    if name in spec.floats and "strength" in name:  # it may be a slice
        return {"name": name, "type": "*fp32", "multiple_of": 4, "output": output, "shape": [_ROWS]}
    if name in spec.floats:  # outputs of our own kernels are aligned
        shape = [_ROWS, _HEADS, str(splits), str(head_size)]
        return {"name": name, "type": "*fp32", "multiple_of": 16, "output": output, "shape": shape}
    value, multiple = name, 1
    if name.startswith("stride_"):
        lengths = dict(spec.tensors.values())
        prefix, axis = name.removeprefix("stride_")[:-1], name[-1]
        length = lengths[prefix]
        value = {"b": f"{length} * heads * {head_size}", "h": str(head_size), "n": f"heads * {head_size}"}[axis]
        # 8 elements are 16 bytes, the widest load; otherwise rows with a head size of 40 are loaded 2 bytes at a time
        multiple = math.gcd(head_size, 16)
    return {"name": name, "type": "i32", "multiple_of": multiple, "value": value}


def entry_parameters(ptx: str) -> list[str]:
    """Return the types of a PTX module's entry parameters, such as `u64`, in order."""
    return re.findall(r"\.param\s+\.(\w+)", _entry(ptx)[1])


def with_parameters(ptx: str, count: int) -> str:
    """Return a PTX module whose entry has the first `count` of its parameters only.

    If a launch passed fewer parameters than the entry declares, the driver would read past their end.

    Raises:
        ValueError: the code reads one of the removed parameters.
    """
    entry = _entry(ptx)
    declared, code = entry[1].split(","), ptx[entry.end(1) :]
    for name in (each.split()[-1] for each in declared[count:]):
        if re.search(rf"\b{name}\b", code):
            raise ValueError(f"the PTX reads its parameter {name}, which cannot be removed")
    return f"{ptx[: entry.start(1)]}{','.join(declared[:count]).rstrip()}\n{code}"


def _entry(ptx: str) -> re.Match[str]:
    """Return the entry of a PTX module, with its parameters as the first group."""
    found = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    if found is None:
        raise ValueError("the PTX has no entry")
    return found


def ptx_target(ptx: str) -> str:
    """Return the target of a PTX module: `sm_89`, or `sm_90a`, which runs on no other architecture."""
    found = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    if found is None:
        raise ValueError("the PTX has no target")
    return found[1]
