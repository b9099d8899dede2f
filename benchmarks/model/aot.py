"""`identity_step` as an AOTInductor package without its weights, called from Python and from C++.

This way several packages can share one copy of the weights: the caller passes tensors to a package and keeps owning
them. They need the strides they had when the package was compiled, so the files for C++ store the strides.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.model.network import SAMPLES, Network, compared, latents_of, peak
from benchmarks.model.turns import turn
from benchmarks.suite import child
from benchmarks.suite.bench import Bench, Result
from infid_kernels.measure import relative_rms, summarize

GRAPH = "identity_step"
NAME = f"{GRAPH} AOTInductor package"
_PROGRAM = Path(__file__).with_name("run_package.cpp")
_MEMORY_FOLDER = Path("/dev/shm")  # weights are written and read once: 5 GB through memory instead of a disk
# Weights stay outside, including those of up to eight values, which would otherwise be written into the code. The code
# that launches the kernels is 70 transformer blocks long; without optimization it compiles in a fraction of the time.
# Comparing the call's time with that of a CUDA graph shows whether its launches keep the GPU waiting.
_CONFIGS = {
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "always_keep_tensor_constants": True,
}


def package(bench: Bench, work: str, memory: str, name: str, names: Sequence[str], folder: str) -> Result:
    """Export, compile and package the step, then time it from Python and from C++. Runs in the child.

    Args:
        bench: the child's bench.
        work: folder for the package and the program.
        memory: folder for the tensors that C++ reads.
        name: name of the item, as for `turn`.
        names: names of all that compile at the same time.
        folder: folder of their turns.
    """
    with torch.no_grad():
        compiler = compile_program(Path(work))
        network = Network(bench, small=True)
        ops = network.best_ops
        arguments = network.arguments(GRAPH, network.dtype(ops))
        module = network.step(GRAPH, ops)
        expected = latents_of(module(**arguments))
        path, result = _packaged(bench, module, arguments, Path(work))
        model, weights = _loaded(path, module)
        call = partial(model, **arguments)
        pairs = zip(latents_of(call()), expected, strict=True)
        errors = [relative_rms(each, wanted.double()) for each, wanted in pairs]
        result |= {"ops": ops, **compared(errors, network.dtype(ops))}
        bench.keep(result)
        write_tensors(Path(memory) / "weights", weights)
        write_tensors(Path(memory) / "inputs", flat(arguments))
        write_tensors(Path(memory) / "outputs", flat({"output": expected}))
        _finish(compiler, bench)
        with turn(Path(folder), name, names, bench):
            result |= network.rated(bench.time_long(call, SAMPLES), GRAPH)
            bench.keep(result)
            cpp = _from_cpp(bench, Path(work) / _PROGRAM.stem, path, Path(memory), network.dtype(ops))
            result |= {"cpp": cpp, "passed": result["passed"] and cpp["passed"]}
            bench.keep(result)
            replay, _ = bench.graphed(call)
            return result | {"graph": asdict(bench.time_long(replay, SAMPLES))} | peak(bench)


def _packaged(bench: Bench, module: torch.nn.Module, arguments: Mapping[str, Any], folder: Path) -> tuple[str, Result]:
    started = time.monotonic()
    program = torch.export.export(module, (), dict(arguments), strict=False)
    exported = time.monotonic()
    result: Result = {"export_seconds": round(exported - started, 1)}
    bench.keep(result)
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / f"{GRAPH}.pt2"), inductor_configs=dict(_CONFIGS)
    )
    result |= {"package_seconds": round(time.monotonic() - exported, 1), "package_bytes": Path(path).stat().st_size}
    bench.keep(result)
    return path, result


def _loaded(path: str, module: torch.nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """Load a package with the module's own weights, without copying them."""
    model = torch._inductor.aoti_load_package(path, run_single_threaded=True)  # required for capture in a CUDA graph
    known = module.state_dict()
    weights = {name: known[name] for name in model.get_constant_fqns()}
    model.load_constants(weights, check_full_update=True, user_managed=True)
    return model, weights


def compile_program(folder: Path) -> subprocess.Popen[str]:
    """Start compiling the C++ program against torch's own headers and libraries, in this process's group."""
    root = Path(torch.__file__).parent
    libraries = [name for name in ("torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda")
                 if (root / "lib" / f"lib{name}.so").exists()]  # fmt: skip
    includes = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    command = [
        "g++", "-std=c++20", "-O1", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{each}" for each in includes), str(_PROGRAM), "-o", str(folder / _PROGRAM.stem),
        f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined",
        *(f"-l{name}" for name in libraries),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(compiler: subprocess.Popen[str], bench: Bench) -> None:
    said, _ = compiler.communicate(timeout=max(bench.seconds_left(), 1.0))
    if compiler.returncode != 0:
        raise RuntimeError(f"the C++ program does not compile: {said[-2000:]}")


def _from_cpp(bench: Bench, program: Path, package: str, tensors: Path, dtype: torch.dtype) -> Result:
    names = [str(tensors / name) for name in ("weights", "inputs", "outputs")]
    command = [str(program), package, *names, str(bench.device), str(SAMPLES)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(bench.seconds_left(), 1.0))
    if ended.returncode != 0:
        raise RuntimeError(f"the C++ program ended with exit code {ended.returncode}: {ended.stderr[-2000:]}")
    found = json.loads(ended.stdout)
    errors = [float(each) for each in found.pop("relative_rms")]
    timing = summarize(found.pop("milliseconds"), captured=False)
    return {**asdict(timing), **found, **compared(errors, dtype)}


def flat(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the arguments with lists flattened, in the order in which a package takes them."""
    found: dict[str, Tensor] = {}
    for name, each in arguments.items():
        if isinstance(each, Tensor):
            found[name] = each
        else:
            found |= {f"{name}.{index}": inner for index, inner in enumerate(each)}
    return found


def write_tensors(stem: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as `run_package.cpp` reads them: their raw memory, and an index with sizes and strides.

    Raises:
        ValueError: a tensor's memory has gaps.
    """
    lines, offset = [], 0
    with stem.with_suffix(".bin").open("wb") as file:
        for name, tensor in tensors.items():
            if not _dense(tensor):
                raise ValueError(f"{name} has gaps in its memory: sizes {tensor.shape}, strides {tensor.stride()}")
            memory = tensor.detach().as_strided((tensor.numel(),), (1,)).cpu().view(torch.uint8)
            memory.numpy().tofile(file)
            kind = str(tensor.dtype).removeprefix("torch.")
            numbers = (offset, tensor.dim(), *tensor.shape, *tensor.stride())
            lines.append(f"{name} {kind} {' '.join(map(str, numbers))}\n")
            offset += memory.numel()
            padding = -offset % 64  # torch's kernels take aligned memory
            file.seek(padding, 1)
            offset += padding
        file.truncate(offset)
    stem.with_suffix(".index").write_text("".join(lines))


def _dense(tensor: Tensor) -> bool:
    """Return whether the elements are contiguous in memory, in any order of the axes."""
    axes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    return all(stride == math.prod(size for _, size in axes[:i]) for i, (stride, _) in enumerate(axes))


def packaged(bench: Bench, seconds: float, **arguments: Any) -> Result:
    """Measure the package in a child; this process owns the folders, since it outlives the child.

    Args:
        bench: bench of this process.
        seconds: time limit.
        arguments: arguments of `turn`, as plain JSON.
    """
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory(dir=_memory_folder()) as memory:
        return child.measure_in_child(f"{__name__}:package", bench, seconds, work=work, memory=memory, **arguments)


def _memory_folder() -> str | None:
    """Return the in-memory folder if the full-size weights fit into it twice."""
    fits = _MEMORY_FOLDER.is_dir() and shutil.disk_usage(_MEMORY_FOLDER).free > 12e9
    return str(_MEMORY_FOLDER) if fits else None
