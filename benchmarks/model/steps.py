"""The full-size model on a GPU: every step eager and as a CUDA graph, images, compiled steps, packages.

`items` lists what `gpu_suite.py` measures besides the kernels, the most important first. It compares a step with the
kernels and the same step in PyTorch, both against fp32, and a step with a person against a plain SDXL step.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.model import compiled, diffusers_pipeline, images
from benchmarks.model.network import SAMPLES, Held, Network, alone, latents_of
from benchmarks.suite.bench import Bench, Item, Result, Workload
from infid_kernels.measure import relative_rms

OPS = ("torch", "triton")
# Limit of the error against fp32 of the step with the kernels, relative to that of the step in PyTorch. All else is the
# same in both, and the kernels round less often: they store no rounded copy of the shifted keys and values. In the demo
# model, in fp16 against float64, six seeds gave 0.97 to 1.02; so an error of half the rounding's size is detected
# (sqrt(1.15² - 1)).
MOST_RATIO = 1.15
PLAIN = "text_step torch graph"
# The cost of a step with a person, relative to a plain SDXL step (with guidance) in the same run.
PRICES = {
    "from a template": "identity_step triton graph",
    "joint": "denoise_step triton graph",
    "joint, torch operations": "denoise_step torch graph",
}


@alone
def parity(held: Held, bench: Bench) -> Result:
    """Compare a step with the kernels and one in PyTorch with the same step in a wider dtype, on the same weights.

    The guided noise estimates are compared, in which guidance magnifies every error.
    """
    network = held.network(bench)
    arguments = network.arguments("denoise_step", network.dtype("triton"))
    found = {ops: _step(network, ops, arguments) for ops in OPS}
    wide = torch.float32 if bench.on_gpu else torch.float64
    exact = _exact(network, arguments, wide)
    streams = {}
    for index, stream in ((0, "text"), (2, "identity")):  # their next latents among the outputs
        errors = {ops: relative_rms(found[ops][index], exact[index].double()) for ops in OPS}
        between = relative_rms(found["triton"][index], found["torch"][index].double())
        limit = MOST_RATIO * errors["torch"]
        passed = errors["triton"] <= limit
        streams[stream] = {**errors, "limit": limit, "between": between, "passed": passed}
    return {
        "relative_rms": streams, "dtype": str(network.dtype("triton")), "reference": str(wide),
        "network": network.name, "passed": all(each["passed"] for each in streams.values()),
    }  # fmt: skip


def _step(network: Network, ops: str, arguments: dict[str, Any]) -> Sequence[Tensor]:
    from infid_export.export.graphs.denoise_step import DENOISE_STEP

    unet = network.unet(network.dtype("triton"))
    outputs: Sequence[Tensor] = DENOISE_STEP.module({"unet": unet}, network.config, ops)(**arguments)
    return outputs


def _exact(network: Network, arguments: dict[str, Any], wide: torch.dtype) -> Sequence[Tensor]:
    from infid_export.export.graphs.denoise_step import DENOISE_STEP
    from infid_export.model.components import cast_module

    unet = cast_module(copy.deepcopy(network.unet(network.dtype("triton"))), wide)
    narrow = network.dtype("triton")
    given = {name: each.to(wide) if each.dtype == narrow else each for name, each in arguments.items()}
    with whole_fp32():
        outputs: Sequence[Tensor] = DENOISE_STEP.module({"unet": unet}, network.config)(**given)
    return outputs


@contextlib.contextmanager
def whole_fp32() -> Iterator[None]:
    """Turn TF32 off for convolutions, where PyTorch allows it by default; products use it only on request."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@alone
def step(held: Held, bench: Bench, graph: str, ops: str, captured: bool) -> Result:
    """Time a step, called from Python or as a CUDA graph; a graph's outputs are compared with the eager step's."""
    network = held.network(bench, small=True)
    arguments = network.arguments(graph, network.dtype(ops))
    call = partial(network.step(graph, ops), **arguments)
    if not captured:
        return network.rated(bench.time_long(call, SAMPLES), graph)
    expected = [each.double() for each in latents_of(call())]
    replay, outputs = bench.graphed(call)
    timing = bench.time_long(replay, SAMPLES)
    errors = [relative_rms(each, wanted) for each, wanted in zip(latents_of(outputs), expected, strict=True)]
    return {**network.rated(timing, graph), "relative_rms_to_eager": max(errors)}


def price(held: Held, bench: Bench) -> Result:
    """Return the time of a step with a person over that of a plain SDXL step, from this run's medians."""
    medians = {name: result["median"] for name, result in bench.results.items() if "median" in result}
    if PLAIN not in medians:
        return {"unavailable": f"it is measured against {PLAIN}, which has no result"}
    plain = medians[PLAIN]
    ratios = {way: medians[name] / plain for way, name in PRICES.items() if name in medians}
    return {"plain": plain, "ratios": ratios, "missing": [name for name in PRICES.values() if name not in medians]}


def items(workload: Workload) -> list[Item]:
    """Return the items of the full-size model, the most important first, with seconds on an H200."""
    held = Held()
    kernels = "mixed_attention"

    def of_step(graph: str, ops: str, captured: bool, seconds: float) -> Item:
        name = f"{graph} {ops} {'graph' if captured else 'eager'}"
        measure = partial(step, held, graph=graph, ops=ops, captured=captured)
        return Item(name, seconds, measure, kernels if ops == "triton" else None)

    return [
        Item("step torch against triton", 12, partial(parity, held), decides=True),
        of_step("denoise_step", "torch", False, 6),
        of_step("denoise_step", "triton", False, 5),
        of_step("denoise_step", "triton", True, 4),
        of_step("denoise_step", "torch", True, 4),
        of_step("identity_step", "triton", True, 5),
        of_step("text_step", "torch", True, 4),
        Item("price of an identity", 0.1, partial(price, held)),
        *images.items(held, workload, kernels),
        *diffusers_pipeline.items(held),
        *compiled.items(held, kernels),
    ]
