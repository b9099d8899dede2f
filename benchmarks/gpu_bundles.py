"""The operations as a process without Triton runs them: from a bundle, launched through the CUDA driver API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from infid_engines.kernel_bundle import KernelBundle, write_bundle
from infid_kernels import mean_shift
from infid_kernels.compile import compile_kernel
from infid_kernels.measure import Call, Inputs
from infid_kernels.tuning import Configuration, architecture_of, choose


def parts(call: Call, device: torch.device) -> list[tuple[str, Configuration, bool]]:
    """Return the kernels that a call in fp16 needs: name, tiles, and whether these divide all lengths."""
    configuration, whole = choose(call.op, device, call.d, call.queries, call.lengths)
    found = [(call.op, configuration.plain, whole)]
    if call.op == "mixed_attention":
        found.append(("mean_shift", mean_shift.CONFIGURATION, False))
    return found


def bundle_of(call: Call, device: torch.device, folder: Path) -> KernelBundle:
    """Compile what a call in fp16 needs, write it as a bundle, and read that.

    Args:
        call: what is to be launched.
        device: the GPU.
        folder: where the bundle is written.
    """
    architecture = architecture_of(device)
    made = [compile_kernel(op, architecture, call.d, tiles, whole=fits) for op, tiles, fits in parts(call, device)]
    write_bundle(folder, [replace(each, launch={**each.launch, "queries": [0]}) for each in made])
    return KernelBundle.load(folder)


def launcher(
    bundle: KernelBundle, call: Call, inputs: Inputs, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """Return a function that computes into an output `[B, H, N, d]`, stored as `[B, N, H, d]`, and returns it.

    Args:
        bundle: with the operation's kernels in fp16.
        call: what is launched.
        inputs: of this call.
        device: the GPU.

    Returns:
        The function, and which kernels it launches.
    """
    major, minor = torch.cuda.get_device_capability(device)
    ops = ["mean_shift", call.op] if call.op == "mixed_attention" else [call.op]
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
