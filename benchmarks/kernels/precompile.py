"""Compiles all kernels that the suite launches beforehand, on all cores, into Triton's cache.

A child process that never touches the GPU launches every call on tensors without memory, with Triton's launch replaced
by its warm-up. So what it compiles has exactly the key that the launch on the GPU looks up, whatever the kernels look
like. The suite counts, for each item, the kernels that were compiled later nevertheless.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import triton
from torch._library.triton import set_wrap_triton_enabled
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernels import bundles, candidates, checks
from benchmarks.suite import child
from benchmarks.suite.bench import DTYPES, Bench, Item, Result
from infid_kernels.compile import compile_kernel
from infid_kernels.measure import Call, Inputs
from infid_kernels.tuning import Choice, Configuration, choose, parse_choice

_SECONDS = {1: 20.0, 2: 9.0}  # expected on 16 cores: 0.5 s per kernel on one core, and one start of Python with torch
_LIMIT = 45.0
Job = dict[str, Any]  # plain JSON: `call`, `configuration`, `fits`, `dtype`, and for a bundle `op`


def jobs(bench: Bench, phase: int) -> list[Job]:
    """Return the kernels that the items of a phase launch, each combination of kernel and specialization once.

    Args:
        bench: its device decides choices and candidates.
        phase: 1 is fp16, also with one row, as without guidance; 2 is bf16 and the sanitizer's calls.
    """
    workload = bench.workload
    checked = [each.call for each in checks.checks(workload).values()]
    calls = [*workload.calls.values(), *(replace(call, rows=1) for call in workload.calls.values()), *checked]
    made: list[Job] = []
    if phase == 1:
        made += [_job(call, *_choice(call, bench), "float16") for call in calls]
        for level in workload.levels:
            worth = candidates.worth_trying(level, bench.quick, bench.architecture)
            tried = [each for each in worth if candidates.can_compute(level, each)]
            made += [_job(level.call, each, level.even_n, "float16") for each in tried]
        for call in workload.calls.values():
            made += [_job(call, configuration, fits, "float16") | {"bundle": op}
                     for op, configuration, fits in bundles.parts(call, bench.device)]  # fmt: skip
    else:
        made += [_job(call, *_choice(call, bench), "bfloat16") for call in calls]
        for call, configuration in checks.sanitized_calls(bench.architecture):
            chosen, fits = _choice(call, bench) if configuration is None else (configuration, None)
            made.append(_job(call, chosen, fits, "float16"))
    return list({_specialization(job): job for job in made}.values())


def _choice(call: Call, bench: Bench) -> tuple[Choice, bool]:
    return choose(call.op, bench.device, call.d, call.queries, call.lengths)


def _job(call: Call, configuration: Choice, fits: bool | None, kind: str) -> Job:
    even_n = configuration.divides(call.lengths) if fits is None else fits
    return {"call": asdict(call), "configuration": asdict(configuration), "fits": even_n, "dtype": kind}


def _specialization(job: Job) -> str:
    """Return the key of what Triton compiles: of an integer it only matters whether it is 1 or a multiple of 16."""
    call = job["call"]
    sizes = [call["rows"], call["heads"], call["queries"], call["identity"], call["text"], call["heads"] * call["d"]]
    kinds = [1 if size == 1 else 16 if size % 16 == 0 else 0 for size in sizes]
    return repr(({**job, "call": [call["op"], call["d"]]}, kinds))


def compiled(phase: int, bench: Bench) -> Result:
    """Compile what the items of a phase launch, in a child process with one worker per core."""
    if not bench.on_gpu:
        return {"unavailable": "Triton's interpreter compiles nothing"}
    offline = replace(bench, device=torch.device("cpu"))  # the child must not touch the GPU
    return child.measure_in_child(
        f"{__name__}:compile_all", offline, _LIMIT, jobs=jobs(bench, phase), architecture=bench.architecture,
        capability=list(torch.cuda.get_device_capability(bench.device)),
    )  # fmt: skip


def items(phase: int) -> list[Item]:
    """Return the item that compiles."""
    kinds = {1: "float16", 2: "bfloat16"}
    return [Item(f"compile {kinds[phase]}", _SECONDS[phase], partial(compiled, phase), always=True, phase=phase)]


def compile_all(bench: Bench, jobs: Sequence[Job], architecture: str, capability: Sequence[int]) -> Result:
    """Compile jobs in forked processes; neither this process nor they touch the GPU.

    Args:
        bench: keeps the result so far.
        jobs: what to compile.
        architecture: architecture of the bundles.
        capability: the GPU's compute capability, major and minor.
    """
    started, workers = time.monotonic(), len(os.sched_getaffinity(0))
    found: Result = {"jobs": len(jobs), "workers": workers, "compiled": 0, "in_cache": 0, "failed": []}
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    with multiprocessing.get_context("fork").Pool(workers, launch_nothing, (target,)) as pool:
        for outcome in pool.imap_unordered(partial(_compile, architecture), jobs):
            for name in ("compiled", "in_cache"):
                found[name] += outcome[name]
            found["failed"] += outcome["failed"]
            found["seconds"] = round(time.monotonic() - started, 2)
            bench.keep(found)
    return found


class _Offline:
    """The part of the driver that Triton needs to compile for a GPU that this process does not touch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launch_nothing(target: GPUTarget) -> None:
    """From now on in this process, make every launch of a kernel only compile it for a GPU."""
    launch = JITFunction.run

    def warm(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> Any:
        return launch(kernel, *arguments, warmup=True, **options)

    torch.set_num_threads(1)
    driver.set_active(_Offline(target))
    JITFunction.run = warm


def _compile(architecture: str, job: Job) -> Result:
    """Compile one job, and count what Triton compiled and what was already in its cache."""
    counted: Result = {"compiled": 0, "in_cache": 0, "failed": []}

    def count(cache_hit: bool, **_: Any) -> None:
        counted["in_cache" if cache_hit else "compiled"] += 1

    triton.knobs.compilation.listener = count
    call, configuration = Call(**job["call"]), parse_choice(job["configuration"])
    try:
        if "bundle" in job:
            assert isinstance(configuration, Configuration)  # a library's kernels are not bundled
            compile_kernel(job["bundle"], architecture, call.d, configuration, job["dtype"], job["fits"])
        else:
            with set_wrap_triton_enabled(False):  # PyTorch would trace the launch instead
                call.launched(without_memory(call, DTYPES[job["dtype"]]), configuration, job["fits"])
    except Exception as error:  # the item that launches this kernel reports the error; here it is listed
        counted["failed"].append(f"{call}, {configuration}: {type(error).__name__}: {error}"[:300])
    return counted


def without_memory(call: Call, dtype: torch.dtype) -> Inputs:
    """Return inputs of a call on the meta device, with the layout of the real ones."""
    lengths = (call.queries, call.identity, call.identity, call.text, call.text)
    tokens = [
        torch.empty(call.rows, length, call.heads, call.d, dtype=dtype, device="meta").transpose(1, 2)
        for length in lengths
    ]
    return Inputs(*tokens, *(torch.empty(call.rows, device="meta") for _ in range(2)))


class Listener:
    """Counts the kernels that Triton compiles in this process.

    Attributes:
        names: names of the kernels compiled since the last call of `taken`.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, src: Any, cache_hit: bool, **_: Mapping[str, Any]) -> None:
        """Note one compilation."""
        if not cache_hit:
            self.names.append(str(src.name))

    def taken(self) -> list[str]:
        """Return the names, and clear them."""
        names, self.names = self.names, []
        return names
