"""Whether the kernels are right on a GPU: against float64, against themselves, and under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gpu_bench import DTYPES, Bench, Item, Result, public
from infid_kernels.measure import LIMITS, SDXL_CALLS, Call, Inputs, relative_rms
from infid_kernels.tuning import OPS, Configuration, architecture_of, candidates, choose

_RACES = 50  # runs on the same inputs
_SANITIZER_SECONDS = 60.0  # that one tool may take
_TOOLS = ("memcheck", "racecheck")
_FOUND = 9  # the exit code by which it says that it found something


@dataclass(frozen=True)
class Check:
    """A call, and what its inputs are like.

    Args:
        call: its shape.
        content: `normal`, `large` logits, `ties` among the keys, or `means` 1e3 apart.
        sliced: whether every tensor is cut out of a larger one, so that its tokens lie three times as far apart.
    """

    call: Call
    content: str = "normal"
    sliced: bool = False

    def inputs(self, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        """Return fresh inputs."""
        made = self.call.inputs(dtype, generator)
        if self.content == "large":
            made = replace(made, q=made.q * 30)
        if self.content == "ties":
            keys = {name: _tied(getattr(made, name), generator) for name in ("k_id", "k_t")}
            made = replace(made, **keys)
        if self.content == "means":
            made = replace(made, k_t=made.k_t + 1e3, v_t=made.v_t + 1e3)
        if self.sliced:
            names = ("q", "k_id", "v_id", "k_t", "v_t")
            made = replace(made, **{name: _sliced(getattr(made, name)) for name in names})
        return made


def _tied(keys: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(keys.shape, generator=generator, device=keys.device)
    return (keys[:, :, :1] + 1e-3 * noise).to(keys.dtype)


def _sliced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor.transpose(1, 2)] * 3, 2)[:, :, 1].transpose(1, 2)


def check(wanted: Check, dtype: torch.dtype, bench: Bench) -> Result:
    """Compare a launch into a poisoned output with float64, and the public operation with the launch, bit by bit."""
    call, inputs = wanted.call, wanted.inputs(dtype, bench.generator)
    configuration, whole = choose(call.op, bench.device, call.d, call.queries, call.lengths)
    launched = call.launched(inputs, configuration, whole)
    error, limit = relative_rms(launched, call.reference(inputs)), LIMITS[dtype]
    same = torch.equal(public(call, inputs), launched)
    return {"relative_rms": error, "limit": limit, "public_is_the_same": same, "passed": error <= limit and same,
            "configuration": asdict(configuration), "whole": whole}  # fmt: skip


# The true shapes, then odd ones: tails in every segment, one token, no person, head sizes that are padded.
_SHAPES: Mapping[str, Call] = {
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
# What the tiles of a true shape meet besides: at 1024 tokens every tile is whole and the pipeline is full.
_CONTENTS: Mapping[str, Check] = {
    f"{name}, {what}": Check(SDXL_CALLS[name], content, what == "sliced")
    for name in ("mixed-1024", "merged-1024")
    for what, content in (("large", "large"), ("ties", "ties"), ("means", "means"), ("sliced", "normal"))
}
CORRECTNESS: Mapping[str, Check] = {**{name: Check(call) for name, call in _SHAPES.items()}, **_CONTENTS}


def correctness() -> list[Item]:
    """Return the checks; every operation's come before anything of it is timed."""
    return [
        Item(f"correct {name} {kind}", 2.0, partial(check, each, dtype), each.call.op, each.call.d, True, True)
        for kind, dtype in DTYPES.items()
        for name, each in CORRECTNESS.items()
    ]


# Forms of mixed attention that the table does not hold; `tune` checks every candidate, and may be skipped.
FORMS: Mapping[str, Callable[[Configuration], bool]] = {
    "descriptors": lambda each: each.descriptors and not each.persistent,
    "persistent": lambda each: each.persistent > 0,
}


def first_of(form: str, device: torch.device) -> Configuration | None:
    """Return the most promising candidate of a form; None where this GPU has none."""
    tried = candidates("mixed_attention", architecture_of(device))
    return next((each for each in tried if FORMS[form](each)), None)


def right_in_form(form: str, bench: Bench) -> Result:
    """Compare a launch in a form that the table does not hold with float64."""
    configuration = first_of(form, bench.device)
    if configuration is None:
        return {"error": "no candidate of this form on this architecture"}
    call, dtype = SDXL_CALLS["mixed-1024"], torch.float16
    inputs = call.inputs(dtype, bench.generator)
    error, limit = relative_rms(call.launched(inputs, configuration), call.reference(inputs)), LIMITS[dtype]
    return {"relative_rms": error, "limit": limit, "passed": error <= limit, "configuration": asdict(configuration)}


def race(bench: Bench) -> Result:
    """Run the same inputs again and again; an operation without races gives the same bits."""
    differing = {}
    for name, call in SDXL_CALLS.items():
        inputs = call.inputs(torch.float16, bench.generator)
        first = public(call, inputs)
        differing[name] = sum(not torch.equal(public(call, inputs), first) for _ in range(_RACES - 1))
    return {"runs": _RACES, "differing": differing, "passed": not any(differing.values())}


def sanitize(tool: str, bench: Bench) -> Result:
    """Run small calls under compute-sanitizer, in a process of their own; what it finds fails the check."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return {"error": "compute-sanitizer is not on this machine"}
    command = [program, "--tool", tool, "--error-exitcode", str(_FOUND), sys.executable, __file__]
    # without caching every tensor is an allocation of its own, so that a step over its end is seen
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seconds = max(min(_SANITIZER_SECONDS, bench.seconds_left() - 5), 1)
    try:
        found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        return {"error": f"it was stopped after {error.timeout:.0f} s"}
    said = {"exit_code": found.returncode, "said": (found.stdout + found.stderr).strip().splitlines()[-20:]}
    if found.returncode in (0, _FOUND):
        return {**said, "passed": found.returncode == 0}
    return {**said, "error": f"it ended with exit code {found.returncode}"}


def sanitized() -> None:
    """What runs under compute-sanitizer: whole and ragged segments of both operations, and every form."""
    device = torch.device("cuda")
    generator = torch.Generator(device)
    for op in OPS:
        for lengths in ((128, 128, 128), (77, 261, 77)):
            call = Call(op, 1, 2, *lengths)
            public(call, call.inputs(torch.float16, generator))
    for form in FORMS:
        configuration, call = first_of(form, device), Call("mixed_attention", 1, 2, 300, 261, 128)
        if configuration is not None:
            call.launched(call.inputs(torch.float16, generator), configuration)
    torch.cuda.synchronize()


def soundness() -> list[Item]:
    """Return what may show a fault that no comparison of results shows, or in what the table does not hold."""
    found = [Item("race", 5.0, race, decides=True)]
    found += [
        Item(f"form {form}", 4.0, partial(right_in_form, form), "mixed_attention", decides=True) for form in FORMS
    ]
    return [
        *found,
        *(Item(f"sanitizer {tool}", _SANITIZER_SECONDS, partial(sanitize, tool), decides=True) for tool in _TOOLS),
    ]


if __name__ == "__main__":
    sanitized()
