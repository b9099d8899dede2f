"""What `gpu_suite.py` measures: a registry of items, each a name, the seconds it takes, and how it is measured."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpu_rivals
import roofline
from gpu_rivals import Rival
from infid_kernels import merged_cross_attention, mixed_attention
from infid_kernels.arguments import empty_output
from infid_kernels.autotune import LEVELS, Level, tune
from infid_kernels.mean_shift import launch_mean_shift
from infid_kernels.measure import LIMITS, SDXL_CALLS, Call, Inputs, Timing, input_sets, relative_rms, time_on_gpu
from infid_kernels.tuning import OPS, architecture_of, choose
from infid_kernels.tuning import candidates as worth_trying

Result = dict[str, Any]
DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
OURS, AGAIN = "infid_kernels", "infid_kernels again"  # the same version twice: their difference is the spread
_RACES = 50  # runs on the same inputs
_QUICK_CANDIDATES = 6
_MATRIX = 8192  # side of the product that measures the matrix ceiling: 1.1 TFLOP, 400 MB
_COPY = 2**30  # bytes of the copy that measures the memory ceiling


@dataclass
class Bench:
    """The device, and what has been found out so far.

    Args:
        device: a CUDA device.
        quick: fewer samples and candidates.
        seconds_left: tells how long there is.
        seed: of all inputs.
        ceilings: FLOP/s of a matrix product and bytes/s of a copy, once they are measured.
    """

    device: torch.device
    quick: bool
    seconds_left: Callable[[], float]
    seed: int
    ceilings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(self.seed)

    def time(self, calls: Sequence[Callable[[], object]]) -> Timing:
        """Time calls that take turns, in a CUDA graph; what cannot be captured is timed by plain launches."""
        samples = 10 if self.quick else 50
        try:
            return time_on_gpu(calls, samples)
        except RuntimeError:
            torch.cuda.synchronize()  # a fault of the kernel itself comes up here again
            return time_on_gpu(calls, samples, capture=False)

    def sets(self, bytes_per_set: int) -> range:
        """Return one number for each set of inputs that it takes to read none from the L2 cache."""
        return range(input_sets(bytes_per_set, self.device))


@dataclass(frozen=True)
class Item:
    """One thing to measure.

    Args:
        name: in the results, and for --only.
        seconds: expected; the item is skipped if there is less time.
        measure: returns the result; `passed` in it says whether a check held.
        op: if this operation is red, the item is skipped.
        always: whether --only cannot leave it out.
        decides: whether the exit code depends on it.
    """

    name: str
    seconds: float
    measure: Callable[[Bench], Result]
    op: str | None = None
    always: bool = False
    decides: bool = False


def public(call: Call, inputs: Inputs) -> Tensor:
    """Call the operation as a user does."""
    i = inputs
    if call.op == "mixed_attention":
        return mixed_attention(i.q, i.k_id, i.v_id, i.k_t, i.v_t, i.style_strength)
    return merged_cross_attention(i.q, i.k_t, i.v_t, i.k_id, i.v_id, i.style_strength, i.identity_strength)


def check(call: Call, dtype: torch.dtype, bench: Bench) -> Result:
    """Compare a launch into a poisoned output with float64, and the public operation with the launch, bit by bit."""
    inputs = call.inputs(dtype, bench.generator)
    configuration, whole = choose(call.op, bench.device, call.d, call.queries, call.lengths)
    launched = call.launched(inputs, configuration, whole)
    error, limit = relative_rms(launched, call.reference(inputs)), LIMITS[dtype]
    same = torch.equal(public(call, inputs), launched)
    return {"relative_rms": error, "limit": limit, "public_is_the_same": same, "passed": error <= limit and same,
            "configuration": asdict(configuration), "whole": whole}  # fmt: skip


def ceilings(bench: Bench) -> Result:
    """Measure what the card can do: a large bf16 product, and a copy counted as read and written."""
    a, b = (torch.randn(_MATRIX, _MATRIX, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    product = bench.time([lambda: a @ b])
    source = torch.randint(256, (_COPY,), device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = bench.time([lambda: target.copy_(source)])
    bench.ceilings = {
        "flops_per_second": 2 * _MATRIX**3 / (product.median * 1e-3),
        "bytes_per_second": 2 * _COPY / (copy.median * 1e-3),
    }
    return {**bench.ceilings, "product": asdict(product), "copy": asdict(copy)}


def speed(name: str, dtype: torch.dtype, bench: Bench) -> Result:
    """Time ours and every rival on the same inputs; a rival that cannot run is kept with its error."""
    call = SDXL_CALLS[name]
    sets = [call.inputs(dtype, bench.generator) for _ in bench.sets(roofline.least_bytes(call))]
    expected = call.reference(sets[0])
    ours = [partial(public, call, inputs) for inputs in sets]
    configuration, whole = choose(call.op, bench.device, call.d, call.queries, call.lengths)
    launches = [partial(call.launcher(inputs, configuration, whole), torch.empty_like(inputs.q)) for inputs in sets]
    found = {OURS: _contender(call, bench, ours, expected, dtype)}
    found["attention kernel alone"] = _rated(call, bench, bench.time(launches)) | {"complete": False}
    for rival in (rival for rival in gpu_rivals.RIVALS if rival.op == call.op):
        found[rival.name] = _rival(rival, call, bench, sets, expected, dtype)
    found[AGAIN] = _contender(call, bench, ours, expected, dtype)
    best = min(
        (name for name, row in found.items() if row.get("complete") and row["right"] and name not in (OURS, AGAIN)),
        key=lambda name: found[name]["median"], default=None,
    )  # fmt: skip
    return {
        "flops": roofline.flops(call), "bytes": roofline.least_bytes(call), "input_sets": len(sets),
        "configuration": asdict(configuration), "whole": whole,
        "contenders": found, "spread": abs(found[AGAIN]["median"] / found[OURS]["median"] - 1), "best_rival": best,
        "times_faster": found[best]["median"] / found[OURS]["median"] if best else None,
    }  # fmt: skip


def _rival(
    rival: Rival, call: Call, bench: Bench, sets: Sequence[Inputs], expected: Tensor, dtype: torch.dtype
) -> Result:
    if bench.seconds_left() < rival.seconds:
        return {"error": f"skipped: it takes about {rival.seconds:.0f} s, {bench.seconds_left():.0f} s are left"}
    try:
        calls = [rival.prepare(inputs) for inputs in sets]
        return _contender(call, bench, calls, expected, dtype) | {"complete": rival.complete}
    except Exception as error:  # whatever a library raises is its result here
        return {"error": f"{type(error).__name__}: {error}"}


def _contender(
    call: Call, bench: Bench, calls: Sequence[Callable[[], Tensor]], expected: Tensor, dtype: torch.dtype
) -> Result:
    error = relative_rms(calls[0](), expected)
    rated = _rated(call, bench, bench.time(calls))
    return rated | {"relative_rms": error, "right": error <= LIMITS[dtype], "complete": True}


def _rated(call: Call, bench: Bench, timing: Timing) -> Result:
    """Return a timing with its rate, and as shares of the ceilings measured in this run."""
    seconds = timing.median * 1e-3
    rate = roofline.flops(call) / seconds
    shares = {
        "of_matrix_ceiling": rate / bench.ceilings["flops_per_second"],
        "of_bytes_floor": roofline.least_bytes(call) / bench.ceilings["bytes_per_second"] / seconds,
    } if bench.ceilings else {}  # fmt: skip
    return {**asdict(timing), "teraflops": rate / 1e12, **shares}


def mean_shift(name: str, bench: Bench) -> Result:
    """Time the reduction over keys and values against the projection of the hidden states' means.

    Both are timed on inputs from memory (`cold`) and on inputs that may still be in the L2 cache (`warm`), as they are
    when the projections have just written them.
    """
    call, dtype = SDXL_CALLS[name], torch.float16
    channels = call.heads * call.d
    sets = []
    for _ in bench.sets(roofline.hidden_shift_bytes(call)):
        weight = torch.randn(2 * channels, channels, device=bench.device, generator=bench.generator) / channels**0.5
        hidden = [
            torch.randn(call.rows, length, channels, device=bench.device, generator=bench.generator) + mean
            for length, mean in ((call.identity, 0.0), (call.text, 0.3))
        ]
        sets.append((weight.to(dtype), *(x.to(dtype) for x in hidden)))
    strength = torch.ones(call.rows, device=bench.device)
    projected = [_projected(call, weight, own, text) for weight, own, text in sets]
    compiled = torch.compile(shift_of_hidden, dynamic=False)
    ways: Mapping[str, Sequence[Callable[[], object]]] = {
        "over keys and values": [partial(launch_mean_shift, *tensors, strength) for tensors in projected],
        "by hidden states, eager": [partial(shift_of_hidden, *tensors, strength) for tensors in sets],
        "by hidden states, compiled": [partial(compiled, *tensors, strength) for tensors in sets],
    }
    found: Result = {}
    for way, calls in ways.items():
        try:
            found[way] = {"cold": asdict(bench.time(calls)), "warm": asdict(bench.time(calls[:1]))}
        except Exception as error:  # whatever a library raises is its result here
            found[way] = {"error": f"{type(error).__name__}: {error}"}
    weight, own, text = (x.double() for x in sets[0])
    expected = (text.mean(1) - own.mean(1)) @ weight.T
    shift_k, shift_v = (parts.sum(2).reshape(call.rows, channels) for parts in ways["over keys and values"][0]())  # type: ignore[attr-defined]
    return {
        "ways": found,
        "bytes": {"over keys and values": roofline.shift_bytes(call), "hidden": roofline.hidden_shift_bytes(call)},
        "relative_rms": {
            "over keys and values": relative_rms(torch.cat([shift_k, shift_v], 1), expected),
            "by hidden states": relative_rms(shift_of_hidden(*sets[0], strength), expected),
        },
    }


def shift_of_hidden(weight: Tensor, own: Tensor, text: Tensor, strength: Tensor) -> Tensor:
    """Return s·W(μ(h_t) − μ(h_id)) `[B, 2C]` for keys and values at once.

    Args:
        weight: `[2C, C]`, W_k above W_v.
        own: `[B, M, C]` hidden states of the identity rows.
        text: `[B, L, C]` hidden states of the text rows.
        strength: `[B]`, s.
    """
    difference = text.mean(1, dtype=torch.float32) - own.mean(1, dtype=torch.float32)
    return (strength[:, None] * difference).to(weight.dtype) @ weight.T


def _projected(call: Call, weight: Tensor, own: Tensor, text: Tensor) -> list[Tensor]:
    made = []
    for hidden in (own, text):
        keys, values = (hidden @ weight.T).chunk(2, -1)
        made += [x.unflatten(-1, (call.heads, call.d)).transpose(1, 2) for x in (keys, values)]
    return made


def bundle(name: str, bench: Bench) -> Result:
    """Compare a bundle's launch into a poisoned output with float64, then time it next to the operation of torch."""
    call, dtype = SDXL_CALLS[name], torch.float16
    sets = [call.inputs(dtype, bench.generator) for _ in bench.sets(roofline.least_bytes(call))]
    try:
        import gpu_bundles
        from infid_engines.errors import BackendUnavailableError
    except ImportError as error:
        return {"error": f"{error}; put engines into PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        made = gpu_bundles.bundle_of(call, bench.device, Path(folder) / "bundle")
        launches = [gpu_bundles.launcher(made, call, inputs, bench.device) for inputs in sets]
    outputs = [empty_output(inputs.q).fill_(math.nan) for inputs in sets]
    calls = [partial(launch, out) for (launch, _), out in zip(launches, outputs, strict=True)]
    try:
        error = relative_rms(calls[0](), call.reference(sets[0]))
    except BackendUnavailableError as fault:  # cuda-python is not installed
        return {"error": str(fault)}
    right = {"relative_rms": error, "limit": LIMITS[dtype], "passed": error <= LIMITS[dtype], "kernels": launches[0][1]}
    if not right["passed"]:
        return right
    ours = bench.time([partial(public, call, inputs) for inputs in sets])
    return right | {"driver": _rated(call, bench, bench.time(calls)), "torch": _rated(call, bench, ours)}


def race(bench: Bench) -> Result:
    """Run the same inputs again and again; an operation without races gives the same bits."""
    differing = {}
    for name, call in SDXL_CALLS.items():
        inputs = call.inputs(torch.float16, bench.generator)
        first = public(call, inputs)
        differing[name] = sum(not torch.equal(public(call, inputs), first) for _ in range(_RACES - 1))
    return {"runs": _RACES, "differing": differing, "passed": not any(differing.values())}


def sanitize(tool: str, bench: Bench) -> Result:
    """Run small calls under compute-sanitizer, in a process of their own."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return {"error": "compute-sanitizer is not on this machine"}
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
    # without caching every tensor is an allocation of its own, so that a step over its end is seen
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False,
            timeout=max(bench.seconds_left() - 5, 1),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return {"error": f"it was stopped after {error.timeout:.0f} s"}
    said = (found.stdout + found.stderr).strip().splitlines()
    return {"exit_code": found.returncode, "clean": found.returncode == 0, "said": said[-20:]}


def sanitized() -> None:
    """What runs under compute-sanitizer: whole and ragged segments of both operations."""
    device = torch.device("cuda")
    generator = torch.Generator(device)
    for op in OPS:
        for lengths in ((128, 128, 128), (77, 261, 77)):
            call = Call(op, 1, 2, *lengths)
            public(call, call.inputs(torch.float16, generator))
    torch.cuda.synchronize()


def candidates(level: Level, bench: Bench) -> Result:
    """Check and time every candidate of the table, from which an entry can be filled."""
    tried = worth_trying(level.call.op, architecture_of(bench.device))[: _QUICK_CANDIDATES if bench.quick else None]
    tuned = tune(level, bench.device, bench.time, tried)
    return {"entry": asdict(tuned.entry), "trials": [asdict(trial) for trial in tuned.trials]}


# The true shapes, then odd ones: tails in every segment, one token, no person, head sizes that are padded.
CORRECTNESS: Mapping[str, Call] = {
    **SDXL_CALLS,
    "mixed 3952 (832 × 1216)": Call("mixed_attention", 2, 10, 3952, 3952, 3952),
    "mixed 988 (832 × 1216)": Call("mixed_attention", 2, 20, 988, 988, 988),
    "mixed odd, 5 heads of 40": Call("mixed_attention", 3, 5, 261, 500, 77, 40),
    "mixed odd, heads of 128": Call("mixed_attention", 1, 3, 1001, 63, 77, 128),
    "mixed one token": Call("mixed_attention", 1, 1, 1, 1, 1),
    "mixed no person": Call("mixed_attention", 2, 2, 500, 0, 500),
    "merged two people": Call("merged_cross_attention", 2, 20, 1024, 522, 77),
    "merged odd, 5 heads of 80": Call("merged_cross_attention", 3, 5, 63, 500, 77, 80),
    "merged one token": Call("merged_cross_attention", 1, 1, 1, 1, 1, 32),
    "merged no person": Call("merged_cross_attention", 2, 2, 500, 0, 77),
}


def correctness() -> list[Item]:
    """Return the checks; every operation's come before anything of it is timed."""
    return [
        Item(f"correct {name} {kind}", 2.0, partial(check, call, dtype), call.op, always=True, decides=True)
        for kind, dtype in DTYPES.items()
        for name, call in CORRECTNESS.items()
    ]


def items(quick: bool) -> list[Item]:
    """Return what is measured after the checks, the most wanted first."""
    found = [Item("ceilings", 5.0, ceilings, always=True), *_speeds("float16", torch.float16)]
    found += [
        Item(f"mean-shift {name}", 15.0, partial(mean_shift, name), call.op)
        for name, call in SDXL_CALLS.items()
        if call.op == "mixed_attention"
    ]
    found += [
        Item(f"bundle {name}", 15.0, partial(bundle, name), call.op, decides=True) for name, call in SDXL_CALLS.items()
    ]
    found += [Item("race", 5.0, race, decides=True)]
    for level in LEVELS:
        tried = _QUICK_CANDIDATES if quick else len(worth_trying(level.call.op, "sm_90"))  # which has the most
        found += [Item(f"candidates {level.name}", 3.0 * tried, partial(candidates, level), level.call.op)]
    found += [Item(f"sanitizer {tool}", 30.0, partial(sanitize, tool)) for tool in ("memcheck", "racecheck")]
    return found if quick else [*found, *_speeds("bfloat16", torch.bfloat16)]


def _speeds(kind: str, dtype: torch.dtype) -> list[Item]:
    return [
        Item(f"speed {name} {kind}", 15.0, partial(speed, name, dtype), call.op) for name, call in SDXL_CALLS.items()
    ]


if __name__ == "__main__":
    sanitized()
