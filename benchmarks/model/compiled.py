"""Steps under torch.compile, each in its own process that is killed at a time limit.

Tracing a full-size UNet and generating its code keeps one core busy for more than a minute, so all steps compile at the
same time. They are timed one after the other, once none of them is compiling: compilation uses the GPU too. Compiled
code stays in PyTorch's and Triton's caches (`TORCHINDUCTOR_CACHE_DIR`, `TRITON_CACHE_DIR`; by default below /tmp and
the home folder), so a second run on the same machine finds it.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.model.diffusers_pipeline import Pipeline
from benchmarks.model.network import SAMPLES, Held, Network, latents_of, peak
from benchmarks.suite import child
from benchmarks.suite.bench import Bench, Item, Result
from infid_kernels.measure import relative_rms

_EXPECTED, _LIMIT = 150.0, 180.0  # seconds for all of them together
_TIMING = 25.0  # seconds of these reserved for timing: then steps that have compiled no longer wait for the others
PIPELINE = "diffusers pipeline step compiled"
NAMES = ("denoise_step compiled graph", "identity_step compiled graph", "text_step compiled graph", PIPELINE)


@contextmanager
def turn(folder: Path, name: str, names: Sequence[str], bench: Bench) -> Iterator[None]:
    """Wait until no step is compiling, or little time is left, and then until no other step is being timed.

    Args:
        folder: folder where each step creates a file once it has compiled or ended.
        name: name of the step that has compiled.
        names: names of all steps.
        bench: says how much time is left.
    """
    (folder / name).touch()
    while any(not (folder / other).exists() for other in names) and bench.seconds_left() > _TIMING:
        time.sleep(0.1)
    with (folder / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        limit = _limit(network.dtype(ops))
        result |= {"ops": ops, "relative_rms": max(errors), "limit": limit, "passed": max(errors) <= limit}
        del outputs
        bench.keep(result)
        with turn(Path(folder), name, names, bench):
            replay, _ = bench.graphed(partial(compiled, **arguments))
            return result | network.rated(bench.time_long(replay, SAMPLES), graph) | peak(bench)


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


def _limit(dtype: torch.dtype) -> float:
    """Return the RMS error that the project allows for a graph of this dtype."""
    from infid_export.export.tolerances import tolerance

    return tolerance("fp32" if dtype == torch.float32 else "fp16").rms


def compile_all(bench: Bench, names: Sequence[str], seconds: float = _LIMIT) -> dict[str, Result]:
    """Compile several steps at once, each in its own process group, and time them.

    Args:
        bench: bench of this process, whose networks have been freed.
        names: some of `NAMES`.
        seconds: time limit for all of them together.
    """

    def one(name: str) -> Result:
        function = f"{__name__}:{'compile_pipeline' if name == PIPELINE else 'compile_step'}"
        try:
            return child.measure_in_child(function, bench, seconds, name=name, names=list(names), folder=folder)
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
        Item(name, 1.0 if index else _EXPECTED, partial(compiled, held, name=name), op)
        for index, name in enumerate(NAMES)
    ]
