"""What `gpu_suite.py` measures: a registry of items, each a name, the seconds it takes, and how it is measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import gpu_rivals
import roofline
from gpu_bench import DTYPES, Bench, Item, Result, public
from gpu_checks import soundness
from gpu_rivals import Rival
from infid_kernels.arguments import empty_output
from infid_kernels.autotune import LEVELS, Level, tune
from infid_kernels.compile import compile_code
from infid_kernels.mean_shift import launch_mean_shift
from infid_kernels.measure import LIMITS, SDXL_CALLS, Call, Inputs, Timing, relative_rms
from infid_kernels.sass import read_machine_code
from infid_kernels.tuning import Configuration, architecture_of, choose
from infid_kernels.tuning import candidates as worth_trying

OURS, AGAIN = "infid_kernels", "infid_kernels again"  # the same version twice: their difference is the spread
_QUICK_CANDIDATES = 6
_OWN_SECONDS = 15.0  # of a speed without its rivals: inputs, the result in float64, and ours three times
_MATRIX = 8192  # side of the product that measures the matrix ceiling: 1.1 TFLOP, 400 MB
_COPY = 2**30  # bytes of the copy that measures the memory ceiling


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


def resources(call: Call, configuration: Configuration, whole: bool, kind: str, device: torch.device) -> Result:
    """Return what a form of the kernel uses, and how many tiles of it a Hopper multiprocessor holds at once."""
    architecture = architecture_of(device)
    compiled = compile_code(call.op, architecture, call.d, configuration, kind, whole)
    registers = read_machine_code(compiled.asm["cubin"]).registers
    used = {"configuration": asdict(configuration), "registers": registers, "shared_bytes": compiled.metadata.shared}
    return used | ({"tiles_at_once": roofline.at_once(used)} if architecture == "sm_90" else {})


def speed(name: str, kind: str, bench: Bench) -> Result:
    """Time ours and every rival on the same inputs; a rival that cannot run is kept with its error."""
    call, dtype = SDXL_CALLS[name], DTYPES[kind]
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
        "flops": roofline.flops(call), "bytes": roofline.least_bytes(call), "input_sets": len(sets), "whole": whole,
        **resources(call, configuration, whole, kind, bench.device),
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


def candidates(level: Level, bench: Bench) -> Result:
    """Check and time every candidate of the table, from which an entry can be filled."""
    tried = worth_trying(level.call.op, architecture_of(bench.device))[: _QUICK_CANDIDATES if bench.quick else None]
    tuned = tune(level, bench.device, bench.time, tried)
    return {"entry": asdict(tuned.entry), "trials": [asdict(trial) for trial in tuned.trials]}


def items(quick: bool) -> list[Item]:
    """Return what is measured after the checks, the most wanted first."""
    found = [Item("ceilings", 5.0, ceilings, always=True), *_speeds("float16")]
    found += [
        Item(f"mean-shift {name}", 25.0, partial(mean_shift, name), call.op)
        for name, call in SDXL_CALLS.items()
        if call.op == "mixed_attention"
    ]
    found += [
        Item(f"bundle {name}", 15.0, partial(bundle, name), call.op, decides=True) for name, call in SDXL_CALLS.items()
    ]
    found += soundness()
    for level in LEVELS:
        tried = _QUICK_CANDIDATES if quick else len(worth_trying(level.call.op, "sm_90"))  # which has the most
        found += [Item(f"candidates {level.name}", 3.0 * tried, partial(candidates, level), level.call.op)]
    return found if quick else [*found, *_speeds("bfloat16")]


def _speeds(kind: str) -> list[Item]:
    return [
        Item(f"speed {name} {kind}", _OWN_SECONDS + gpu_rivals.seconds(call.op), partial(speed, name, kind), call.op)
        for name, call in SDXL_CALLS.items()
    ]
