"""The operations as a process without Triton runs them: from a bundle, launched through the CUDA driver API."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels import roofline
from benchmarks.kernels.speeds import rated
from benchmarks.suite.bench import Bench, Item, Result, Workload, public
from infid_engines.errors import BackendUnavailableError
from infid_engines.kernel_bundle import KernelBundle, write_bundle
from infid_kernels import mean_shift
from infid_kernels.arguments import empty_output
from infid_kernels.compile import compile_kernel
from infid_kernels.measure import LIMITS, Call, Inputs, relative_rms
from infid_kernels.tuning import Configuration, architecture_of, choose_kernel

_SHIFTS = {"mixed_attention": "mean_shift", "merged_cross_attention": "value_shift"}  # launched before the operation


def parts(call: Call, device: torch.device) -> list[tuple[str, Configuration, bool]]:
    """Return the kernels that a call in fp16 needs: name, tiles, and whether the tiles divide all lengths."""
    configuration, even_n = choose_kernel(call.op, device, call.d, call.queries, call.lengths, "plain")
    return [(call.op, configuration, even_n), (_SHIFTS[call.op], mean_shift.CONFIGURATION, False)]


def bundle_of(call: Call, device: torch.device, folder: Path) -> KernelBundle:
    """Compile the kernels that a call in fp16 needs, write them as a bundle, and load it.

    Args:
        call: the call to launch.
        device: the GPU.
        folder: folder to write the bundle to.
    """
    architecture = architecture_of(device)
    made = [compile_kernel(op, architecture, call.d, tiles, even_n=fits) for op, tiles, fits in parts(call, device)]
    write_bundle(folder, [replace(each, launch={**each.launch, "queries": [0]}) for each in made])
    return KernelBundle.load(folder)


def launcher(
    bundle: KernelBundle, call: Call, inputs: Inputs, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """Return a function that computes into an output `[B, H, N, d]`, stored as `[B, N, H, d]`, and returns it.

    Args:
        bundle: bundle with the operation's kernels in fp16.
        call: the call to launch.
        inputs: the call's inputs.
        device: the GPU.

    Returns:
        The function, and the kernels that it launches.
    """
    major, minor = torch.cuda.get_device_capability(device)
    ops = (_SHIFTS[call.op], call.op)
    kernels = [bundle.find(op, f"sm_{major}{minor}", "float16", call.d, call.lengths, call.queries) for op in ops]
    shape = (call.rows, call.heads, mean_shift.SPLITS, call.d)
    shift_k, shift_v = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    tensors = {**vars(inputs), "strength": inputs.style_strength, "shift_k": shift_k, "shift_v": shift_v}
    sizes = {
        "rows": call.rows, "heads": call.heads, "queries": call.queries, "identity_length": call.identity,
        "text_length": call.text,
    }  # fmt: skip

    def launch(out: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(device).cuda_stream  # another one while a graph is captured
        for kernel in kernels:
            names = [each["name"] for each in kernel.description["arguments"] if each["type"].startswith("*")]
            pointers = {name: (out if name == "out" else tensors[name]).data_ptr() for name in names}
            kernel.launch(stream, pointers, sizes)
        return out

    return launch, [kernel.choice for kernel in kernels]


def measure_bundle(name: str, bench: Bench) -> Result:
    """Compare a bundle's launch into a poisoned output with float64, then time it and the operation in torch."""
    if not bench.on_gpu:
        return {"unavailable": "bundles are launched through the CUDA driver"}
    call, dtype = bench.workload.calls[name], torch.float16
    sets = [call.inputs(dtype, bench.generator) for _ in bench.sets(roofline.least_bytes(call))]
    with tempfile.TemporaryDirectory() as folder:
        made = bundle_of(call, bench.device, Path(folder) / "bundle")
        launches = [launcher(made, call, inputs, bench.device) for inputs in sets]
    outputs = [empty_output(inputs.q).fill_(math.nan) for inputs in sets]
    calls = [partial(launch, out) for (launch, _), out in zip(launches, outputs, strict=True)]
    try:
        error = relative_rms(calls[0](), call.reference(sets[0]))
    except BackendUnavailableError as fault:  # cuda-python is not installed
        return {"unavailable": str(fault)}
    right = {"relative_rms": error, "limit": LIMITS[dtype], "passed": error <= LIMITS[dtype], "kernels": launches[0][1]}
    if not right["passed"]:
        return right
    ours = bench.time([partial(public, call, inputs) for inputs in sets])
    return right | {"driver": rated(call, bench, bench.time(calls)), "torch": rated(call, bench, ours)}


def items(workload: Workload) -> list[Item]:
    """Return one item per call: its bundle, launched through the driver."""
    return [
        Item(f"bundle {name}", 1.3, partial(measure_bundle, name), call.op, call.d, decides=True)
        for name, call in workload.calls.items()
    ]
