"""Speed of the kernels alone: the card's ceilings, every call against its baselines, and the mean shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import baselines, roofline
from benchmarks.kernels.baselines import Baseline
from benchmarks.suite import child
from benchmarks.suite.bench import DTYPES, Bench, Item, Result, Workload, public
from infid_kernels.compile import compile_code
from infid_kernels.mean_shift import launch_mean_shift
from infid_kernels.measure import LIMITS, Call, Inputs, Timing, relative_rms
from infid_kernels.sass import read_machine_code
from infid_kernels.tuning import Choice, Library, choose

OURS, AGAIN = "infid_kernels", "infid_kernels again"  # the same version twice: their difference is the spread
ALONE = "attention kernel alone"
_FIRST_SECONDS, _SECONDS = 9.0, 3.0  # expected per call; the first one loads the baselines' libraries
# Expected and maximum seconds for the compiled baselines of both calls of an operation.
_COMPILE_SECONDS = {"mixed_attention": 35.0, "merged_cross_attention": 25.0}
_COMPILE_LIMIT = {op: 1.5 * seconds for op, seconds in _COMPILE_SECONDS.items()}


def ceilings(bench: Bench) -> Result:
    """Measure the card's limits: a large product in the network's dtype, and a copy, counted as read and written."""
    side, count, dtype = bench.workload.matrix, bench.workload.copy, bench.workload.network
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    product = bench.time([lambda: a @ b])
    source = torch.randint(256, (count,), device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = bench.time([lambda: target.copy_(source)])
    bench.ceilings = {
        "flops_per_second": 2 * side**3 / (product.median * 1e-3),
        "bytes_per_second": 2 * count / (copy.median * 1e-3),
    }
    return {**bench.ceilings, "dtype": str(dtype), "product": asdict(product), "copy": asdict(copy)}


def speed(name: str, kind: str, bench: Bench) -> Result:
    """Time our operation and every eager baseline on the same inputs; one that cannot run is kept as an error."""
    call, dtype = bench.workload.calls[name], DTYPES[kind]
    sets = [call.inputs(dtype, bench.generator) for _ in bench.sets(roofline.least_bytes(call))]
    expected = call.reference(sets[0])
    ours = [partial(public, call, inputs) for inputs in sets]
    configuration, even_n = choose(call.op, bench.device, call.d, call.queries, call.lengths)
    launches = [partial(call.launcher(inputs, configuration, even_n), torch.empty_like(inputs.q)) for inputs in sets]
    found = {OURS: _contender(call, bench, ours, expected, dtype)}
    found[ALONE] = rated(call, bench, bench.time(launches)) | {"complete": False}
    for baseline in baselines.of(call.op, compiled=False):
        found[baseline.name] = _baseline(baseline, call, bench, sets, expected, dtype)
    found[AGAIN] = _contender(call, bench, ours, expected, dtype)
    best = best_baseline(found)
    return {
        "flops": roofline.flops(call), "bytes": roofline.least_bytes(call), "input_sets": len(sets), "even_n": even_n,
        "configuration": asdict(configuration), "contenders": found,
        "spread": abs(found[AGAIN]["median"] / found[OURS]["median"] - 1), "best_baseline": best,
        "times_faster": found[best]["median"] / found[OURS]["median"] if best else None,
        "resources": resources(call, configuration, even_n, kind, bench),
    }  # fmt: skip


def tuned(name: str, bench: Bench) -> Result:
    """Time our operation with the fastest candidates, which were adopted before."""
    call, dtype = bench.workload.calls[name], torch.float16
    sets = [call.inputs(dtype, bench.generator) for _ in bench.sets(roofline.least_bytes(call))]
    chosen, _ = choose(call.op, bench.device, call.d, call.queries, call.lengths)
    ours = [partial(public, call, inputs) for inputs in sets]
    return {
        "configuration": asdict(chosen),
        "contenders": {OURS: _contender(call, bench, ours, call.reference(sets[0]), dtype)},
    }


def best_baseline(contenders: Mapping[str, Result]) -> str | None:
    """Return the fastest baseline that does all the work and is correct."""
    complete = (
        name for name, row in contenders.items() if row.get("complete") and row["right"] and name not in (OURS, AGAIN)
    )
    return min(complete, key=lambda name: float(contenders[name]["median"]), default=None)


def resources(call: Call, configuration: Choice, even_n: bool, kind: str, bench: Bench) -> Result:
    """Return the resources of a form of the kernel, and how many of its tiles a Hopper SM holds at once."""
    if isinstance(configuration, Library):
        return {"unavailable": f"{configuration.library} is a library with its own kernels"}
    if not bench.on_gpu:
        return {"unavailable": "Triton's interpreter makes no machine code"}
    try:
        compiled = compile_code(call.op, bench.architecture, call.d, configuration, kind, even_n)
        registers = read_machine_code(compiled.asm["cubin"]).registers
    except Exception as error:  # the times are valid without it
        return {"error": f"{type(error).__name__}: {error}"}
    shared = compiled.metadata.shared
    used = {"configuration": asdict(configuration), "registers": registers, "shared_bytes": shared}
    if bench.architecture == "sm_90":
        used["tiles_at_once"] = roofline.at_once(configuration.num_warps, registers, shared)
    return used


def compiled_baselines(op: str, bench: Bench) -> Result:
    """Time the compiled baselines of an operation, in a process that is stopped if compilation takes too long."""
    return child.measure_in_child(f"{__name__}:measure_compiled", bench, _COMPILE_LIMIT[op], op=op)


def measure_compiled(bench: Bench, op: str) -> Result:
    """Compile and time one baseline after the other, on the same inputs of a call, and keep each result."""
    found: Result = {"compiler": bench.workload.compiler, "calls": {}}
    for name, call in bench.workload.calls.items():
        if call.op != op:
            continue
        sets = [call.inputs(torch.float16, bench.generator) for _ in bench.sets(roofline.least_bytes(call))]
        expected = call.reference(sets[0])
        of_call: Result = {"contenders": {}}
        found["calls"][name] = of_call
        for baseline in baselines.of(op, compiled=True):
            of_call["contenders"][baseline.name] = _baseline(baseline, call, bench, sets, expected, torch.float16)
            of_call["best_baseline"] = best_baseline(of_call["contenders"])
            bench.keep(found)
    return found


def _baseline(
    baseline: Baseline, call: Call, bench: Bench, sets: Sequence[Inputs], expected: Tensor, dtype: torch.dtype
) -> Result:
    try:
        calls = [baseline.prepare(inputs, bench.workload.compiler) for inputs in sets]
        return _contender(call, bench, calls, expected, dtype) | {"complete": baseline.complete}
    except Exception as error:  # any error of a library is recorded as its result
        return {"error": f"{type(error).__name__}: {error}"}


def _contender(
    call: Call, bench: Bench, calls: Sequence[Callable[[], Tensor]], expected: Tensor, dtype: torch.dtype
) -> Result:
    error = relative_rms(calls[0](), expected)
    return rated(call, bench, bench.time(calls)) | {
        "relative_rms": error, "right": error <= LIMITS[dtype], "complete": True,
    }  # fmt: skip


def rated(call: Call, bench: Bench, timing: Timing) -> Result:
    """Return a timing with its rate, also as fractions of the ceilings measured in this run."""
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
    call, dtype = bench.workload.calls[name], torch.float16
    channels = call.heads * call.d
    sets = []
    for _ in bench.sets(roofline.hidden_shift_bytes(call)):
        weight = torch.randn(2 * channels, channels, device=bench.device, generator=bench.generator) / channels**0.5
        own, text = (
            torch.randn(call.rows, length, channels, device=bench.device, generator=bench.generator) + mean
            for length, mean in ((call.identity, 0.0), (call.text, 0.3))
        )
        sets.append((weight.to(dtype), own.to(dtype), text.to(dtype)))
    strength = torch.ones(call.rows, device=bench.device)
    projected = [_projected(call, weight, own, text) for weight, own, text in sets]
    ways: Mapping[str, Sequence[Callable[[], object]]] = {
        "over keys and values": [partial(launch_mean_shift, *tensors, strength) for tensors in projected],
        "by hidden states": [partial(shift_of_hidden, *tensors, strength) for tensors in sets],
    }
    weight, own, text = (x.double() for x in sets[0])
    expected = (text.mean(1) - own.mean(1)) @ weight.T
    parts = launch_mean_shift(*projected[0], strength)
    return {
        "ways": {
            way: {"cold": asdict(bench.time(calls)), "warm": asdict(bench.time(calls[:1]))}
            for way, calls in ways.items()
        },
        "bytes": {
            "over keys and values": roofline.shift_bytes(call), "by hidden states": roofline.hidden_shift_bytes(call),
        },
        "relative_rms": {
            "over keys and values": relative_rms(
                torch.cat([x.sum(2).reshape(call.rows, channels) for x in parts], 1), expected
            ),
            "by hidden states": relative_rms(shift_of_hidden(*sets[0], strength), expected),
        },
    }  # fmt: skip


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


def _projected(call: Call, weight: Tensor, own: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (k_id, v_id), (k_t, v_t) = (
        [x.unflatten(-1, (call.heads, call.d)).transpose(1, 2) for x in (hidden @ weight.T).chunk(2, -1)]
        for hidden in (own, text)
    )
    return k_id, v_id, k_t, v_t


def items(workload: Workload, kind: str, phase: int) -> list[Item]:
    """Return one item per call: our operation and the eager baselines.

    Args:
        workload: the workload whose calls are timed.
        kind: dtype of the inputs.
        phase: phase of the items.
    """
    return [
        Item(f"speed {name} {kind}", _SECONDS if index else _FIRST_SECONDS, partial(speed, name, kind), call.op, call.d,
             phase=phase)
        for index, (name, call) in enumerate(workload.calls.items())
    ]  # fmt: skip


def mean_shifts(workload: Workload) -> list[Item]:
    """Return one item per level: the mean shift in two ways."""
    return [
        Item(f"mean-shift {name}", 0.5, partial(mean_shift, name), call.op, call.d)
        for name, call in workload.calls.items() if call.op == "mixed_attention"
    ]  # fmt: skip


def compiled() -> list[Item]:
    """Return one item per operation: the compiled baselines of its calls."""
    return [
        Item(f"compiled baselines {op}", seconds, partial(compiled_baselines, op), op)
        for op, seconds in _COMPILE_SECONDS.items()
    ]
