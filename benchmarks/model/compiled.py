"""Compiled steps, each in its own process that is killed at a time limit: torch.compile, and the package of `aot.py`.

Tracing a full-size UNet and generating its code keeps one core busy for minutes, so all steps compile at the same time.
They are timed one after the other (`turns.py`). Compiled code stays in PyTorch's and Triton's caches
(`TORCHINDUCTOR_CACHE_DIR`, `TRITON_CACHE_DIR`; by default below /tmp and the home folder), so a second run on the same
machine finds it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.model import aot
from benchmarks.model.diffusers_pipeline import Pipeline
from benchmarks.model.images import VAE_DTYPES, decoder_dtype, decoder_of
from benchmarks.model.network import SAMPLES, Held, Network, compared, latents_of, peak
from benchmarks.model.turns import turn
from benchmarks.suite import child
from benchmarks.suite.bench import Bench, Item, Result
from infid_kernels.measure import relative_rms

# Seconds for all of them together, of which `turns.TIMING` are for timing. On 16 cores and an H200, plain SDXL compiled
# in 123 s, and the package alone had all its kernels after 195 s.
EXPECTED, LIMIT = 270.0, 300.0
PIPELINE = "diffusers pipeline step compiled"
DECODER = "vae_decoder compiled graph"


def compile_step(bench: Bench, name: str, names: Sequence[str], folder: str) -> Result:
    """Compile a step, compare it with the eager step, and time it as a CUDA graph. Runs in the child."""
    with torch.no_grad():
        network = Network(bench, small=True)
        graph, ops = name.split()[0], network.best_ops
        arguments = network.arguments(graph, network.dtype(ops))
        module = network.step(graph, ops)
        expected = [each.double() for each in latents_of(module(**arguments))]
        compiled = torch.compile(module, backend=bench.workload.compiler, dynamic=False)
        outputs, result = _first_call(bench, partial(compiled, **arguments))
        errors = [relative_rms(each, wanted) for each, wanted in zip(latents_of(outputs), expected, strict=True)]
        result |= {"ops": ops, **compared(errors, network.dtype(ops))}
        del outputs
        bench.keep(result)
        with turn(Path(folder), name, names, bench):
            replay, _ = bench.graphed(partial(compiled, **arguments))
            return result | network.rated(bench.time_long(replay, SAMPLES), graph) | peak(bench)


def compile_decoder(bench: Bench, name: str, names: Sequence[str], folder: str) -> Result:
    """Compile the VAE decoder in the dtype of the images, and time it as a CUDA graph. Runs in the child."""
    with torch.no_grad():
        network = Network(bench)
        dtype = decoder_dtype(network, bench.results)
        module = decoder_of(network, VAE_DTYPES[dtype])
        latents = network.arguments("text_step", network.dtype("torch"))["text_latents"]
        expected = module(latents).double()
        compiled = torch.compile(module, backend=bench.workload.compiler, dynamic=False)
        picture, result = _first_call(bench, partial(compiled, latents))
        result |= {"vae": dtype, "relative_rms_to_eager": relative_rms(picture, expected)}
        result |= {"finite": bool(picture.isfinite().all())}
        bench.keep(result)
        with turn(Path(folder), name, names, bench):
            replay, _ = bench.graphed(partial(compiled, latents))
            return result | asdict(bench.time_long(replay, SAMPLES)) | peak(bench) | {"network": network.name}


def compile_pipeline(bench: Bench, name: str, names: Sequence[str], folder: str) -> Result:
    """Compile the UNet of diffusers' pipeline as its documentation does, CUDA graphs included. Runs in the child."""
    network = Network(bench, small=True)
    pipeline = Pipeline(network)
    mode, compiler = "reduce-overhead" if bench.on_gpu else None, bench.workload.compiler
    unet = pipeline.pipe.unet
    pipeline.pipe.unet = torch.compile(unet, backend=compiler, mode=mode, fullgraph=True, dynamic=False)
    _, result = _first_call(bench, pipeline)
    bench.keep(result)
    with turn(Path(folder), name, names, bench):
        return result | pipeline.timed(bench) | peak(bench) | {"network": network.name}


def _first_call(bench: Bench, call: Callable[[], Any]) -> tuple[Any, Result]:
    """Return the outputs of the first call, its time, and the compiler's counters."""
    from torch._dynamo.utils import counters

    started = time.monotonic()
    outputs = call()
    bench.synchronize()
    found = {"compile_seconds": round(time.monotonic() - started, 1), "backend": bench.workload.compiler}
    hits = counters["inductor"].get("fxgraph_cache_hit", 0)
    return outputs, {**found, "graph_breaks": sum(counters["graph_break"].values()), "cache_hits": hits}


def _in_child(function: str, bench: Bench, seconds: float, **arguments: Any) -> Result:
    return child.measure_in_child(f"{__name__}:{function}", bench, seconds, **arguments)


# What measures each item in its own process: called with bench, time limit, and the arguments of `turn` as plain JSON.
MEASURES: Mapping[str, Callable[..., Result]] = {
    "denoise_step compiled graph": partial(_in_child, "compile_step"),
    "identity_step compiled graph": partial(_in_child, "compile_step"),
    "text_step compiled graph": partial(_in_child, "compile_step"),
    DECODER: partial(_in_child, "compile_decoder"),
    PIPELINE: partial(_in_child, "compile_pipeline"),
    aot.NAME: aot.packaged,
}
NAMES = tuple(MEASURES)


def compile_all(bench: Bench, names: Sequence[str], seconds: float = LIMIT) -> dict[str, Result]:
    """Compile several steps at once, each in its own process group, and time them.

    Args:
        bench: bench of this process, whose networks have been freed.
        names: some of `NAMES`.
        seconds: time limit for all of them together.
    """

    def one(name: str) -> Result:
        try:
            return MEASURES[name](bench, seconds, name=name, names=list(names), folder=folder)
        finally:
            (Path(folder) / name).touch()  # so that the others do not wait for a step that has ended

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(names)) as threads:
        try:
            return dict(zip(names, threads.map(one, names), strict=True))
        except BaseException:  # an interrupt must not wait for the children
            child.kill_all()
            raise


def compiled(held: Held, bench: Bench, name: str) -> Result:
    """Return the result of one step; the first item compiles all of them, and the later ones find their results."""
    if name == NAMES[0]:
        held.give_up()
        held.compiled = compile_all(bench, NAMES)
    if name not in held.compiled:
        return {"skipped": f"it is compiled together with {NAMES[0]}, which did not run"}
    return held.compiled[name]


def items(held: Held, op: str) -> list[Item]:
    """Return the items of the compiled steps; the first one's time is that of all of them.

    Args:
        held: the networks that the items share.
        op: the operation whose checks must have passed.
    """
    return [
        Item(name, 1.0 if index else EXPECTED, partial(compiled, held, name=name), op)
        for index, name in enumerate(NAMES)
    ]
