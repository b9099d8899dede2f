"""Checks that the kernels are correct on a GPU: against float64, against themselves, and under compute-sanitizer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.suite import child
from benchmarks.suite.bench import DTYPES, Bench, Item, Result, Workload, public
from infid_kernels.measure import LIMITS, Call, Inputs, relative_rms
from infid_kernels.mixed_attention_triton import mixed_attention_choice
from infid_kernels.tuning import OPS, Choice, Library, architecture_of, choices, choose_kernel

_SANITIZER_SECONDS = 13.0  # expected per tool
_SANITIZER_LIMIT = 60.0  # maximum per tool
_TOOLS = ("memcheck", "racecheck")
_CHECK_SECONDS = {"float16": 0.2, "bfloat16": 0.1}  # per comparison; the first ones take longer, the others less
_PROGRAM = "benchmarks.kernels.checks"  # this module as a program: launches the calls for the sanitizer
_FOUND = 9  # the sanitizer's exit code if it found an error


@dataclass(frozen=True)
class Check:
    """A call, and how its inputs are distributed.

    Args:
        call: the shape.
        content: `normal`, `large` logits, `ties` among the keys, or `means` 1e3 apart.
        sliced: whether every tensor is a slice of a larger one, so that its tokens have three times the stride.
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
    if dtype == torch.bfloat16 and not bench.on_gpu:
        return {"unavailable": "Triton's interpreter multiplies the bits of bf16 as integers"}
    call, inputs = wanted.call, wanted.inputs(dtype, bench.generator)
    configuration, even_n = chosen(call, inputs)
    launched = call.launched(inputs, configuration, even_n)
    error, limit = relative_rms(launched, call.reference(inputs)), LIMITS[dtype]
    same = torch.equal(public(call, inputs), launched)
    return {"relative_rms": error, "limit": limit, "public_is_the_same": same, "passed": error <= limit and same,
            "configuration": asdict(configuration), "even_n": even_n}  # fmt: skip


def chosen(call: Call, inputs: Inputs) -> tuple[Choice, bool]:
    """Return the choice that the public operation takes for these inputs, whose layout may rule out a form."""
    if call.op == "mixed_attention":
        return mixed_attention_choice(inputs.operands)
    return choose_kernel(call.op, inputs.q.device, call.d, call.queries, call.lengths)


# In addition to the calls that are timed: tails in every segment, one token, no person, head sizes that are padded.
_ODD: Mapping[str, Mapping[str, Call]] = {
    "sdxl": {
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
    },
    "demo": {
        "mixed odd, heads of 40": Call("mixed_attention", 1, 3, 33, 50, 7, 40),
        "mixed one token": Call("mixed_attention", 1, 1, 1, 1, 1),
        "mixed no person": Call("mixed_attention", 1, 2, 40, 0, 33),
        "merged odd, heads of 80": Call("merged_cross_attention", 1, 3, 33, 50, 7, 80),
        "merged no person": Call("merged_cross_attention", 1, 2, 40, 0, 33),
    },
}
_CONTENTS = ("large", "ties", "means", "sliced")


def checks(workload: Workload) -> dict[str, Check]:
    """Return the calls to compare with float64, by name: the timed ones, odd shapes, and unusual inputs."""
    # at the smaller level, every tile and the pipeline are full
    smaller = [name for op in OPS for name in [*_of(workload, op)][-1:]]
    contents = {
        f"{name}, {content}": Check(workload.calls[name], "normal" if content == "sliced" else content,
                                    content == "sliced")
        for name in smaller for content in _CONTENTS
    }  # fmt: skip
    return {name: Check(call) for name, call in {**workload.calls, **_ODD[workload.name]}.items()} | contents


def _of(workload: Workload, op: str) -> dict[str, Call]:
    return {name: call for name, call in workload.calls.items() if call.op == op}


def correctness(workload: Workload, kind: str, phase: int) -> list[Item]:
    """Return the checks in one dtype; all checks of an operation come before it is timed."""
    seconds = _CHECK_SECONDS[kind]
    return [
        Item(
            f"correct {name} {kind}", seconds, partial(check, each, DTYPES[kind]), each.call.op, each.call.d,
            always=True, decides=True, phase=phase, check=True,
        )
        for name, each in checks(workload).items()
    ]  # fmt: skip


def race(bench: Bench) -> Result:
    """Run the same inputs repeatedly; an operation without races gives the same bits."""
    differing, runs = {}, bench.workload.races
    for name, call in bench.workload.calls.items():
        inputs = call.inputs(torch.float16, bench.generator)
        first = public(call, inputs)
        differing[name] = sum(not torch.equal(public(call, inputs), first) for _ in range(runs - 1))
    return {"runs": runs, "differing": differing, "passed": not any(differing.values())}


def sanitize(tool: str, bench: Bench) -> Result:
    """Run small calls under compute-sanitizer, in their own process group; any error it finds fails the check."""
    if not bench.on_gpu:
        return {"unavailable": "compute-sanitizer needs a GPU"}
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        return {"unavailable": "compute-sanitizer is not installed on this machine"}
    command = [program, "--tool", tool, "--error-exitcode", str(_FOUND), sys.executable, "-m", _PROGRAM, tool]
    # without caching, every tensor is its own allocation, so that an access past its end is detected
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    ended = child.run(command, min(_SANITIZER_LIMIT, bench.seconds_left() - child.RESERVE), environment)
    reported = {"exit_code": ended.code, "seconds": ended.seconds, "output": ended.output}
    if ended.code is None:
        return {**reported, "error": f"it was stopped after {ended.seconds:.0f} s"}
    if ended.code in (0, _FOUND):
        return {**reported, "passed": ended.code == 0}
    return {**reported, "error": f"it ended with exit code {ended.code}"}


def sanitized_calls(architecture: str) -> list[tuple[Call, Choice | None]]:
    """Return small calls for the sanitizer: full and partial blocks of both operations, and every form.

    Args:
        architecture: the architecture whose candidates' forms are used.

    Returns:
        Calls, each with a choice, or None for the public operation.
    """
    lengths = ((128, 128, 128), (77, 261, 77))
    found: list[tuple[Call, Choice | None]] = [(Call(op, 1, 2, *each), None) for op in OPS for each in lengths]
    firsts = {(op, form_of(each)): each for op in OPS for each in reversed(choices(op, architecture, 64))}
    # the Gluon form supports full blocks only
    wide = [
        (Call(op, 1, 2, 300, *((256, 128) if getattr(each, "gluon", False) else (261, 128))), each)
        for (op, _), each in firsts.items()
    ]
    return [*found, *wide]


def form_of(choice: Choice) -> str:
    """Return the form of a choice, which is everything except its sizes, in words."""
    sizes = ("block_m", "block_n", "num_warps", "num_stages")
    chosen = {name: value for name, value in asdict(choice).items() if value and name not in sizes}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in chosen.items()) or "plain"


def sanitized(tool: str) -> None:
    """Launch the calls for compute-sanitizer.

    Racecheck gets our kernels only: it reports hazards inside cuDNN's own attention (cuDNN 9.19 on an H200).
    """
    device = torch.device("cuda")
    generator = torch.Generator(device)
    for call, configuration in sanitized_calls(architecture_of(device)):
        if tool == "racecheck" and isinstance(configuration, Library):
            continue
        inputs = call.inputs(torch.float16, generator)
        if configuration is None:
            public(call, inputs)
        else:
            call.launched(inputs, configuration)
    torch.cuda.synchronize()


def sanitizers() -> list[Item]:
    """Return the items that may find errors that no comparison of results finds; they may hang, so they come last."""
    return [
        Item(f"sanitizer {tool}", _SANITIZER_SECONDS, partial(sanitize, tool), decides=True, phase=2)
        for tool in _TOOLS
    ]  # fmt: skip


if __name__ == "__main__":
    sanitized(sys.argv[1])
