"""Shared by everything that `gpu_suite.py` measures: the workload, the device with its clock, and the item."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infid_kernels import merged_cross_attention, mixed_attention
from infid_kernels.autotune import LEVELS, Level
from infid_kernels.measure import SDXL_CALLS, Call, Inputs, Timing, input_sets, summarize, time_on_gpu
from infid_kernels.tuning import architecture_of

Result = dict[str, Any]
DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_WARM_CALLS = 3  # before a long call is timed; fewer once they have taken more than _WARM_SECONDS
_WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Workload:
    """What is measured, and its size.

    Args:
        name: as `--model` takes it.
        model: for `infid_export.model.opening.open_source`.
        size: height and width of the image in pixels.
        steps: steps of a full image.
        few_steps: steps of an image of a few-step model, without guidance.
        calls: the attention calls of the UNet that are timed.
        levels: where candidates are compared; at the first levels every candidate is tried.
        network: dtype of the network's weights and activations.
        matrix: side of the product that measures the matrix ceiling.
        copy: bytes of the copy that measures the memory ceiling.
        races: runs on the same inputs that must give the same bits.
        samples: samples of one timing.
        compiler: backend of torch.compile.
        patience: minimum seconds before an item is stopped as hanging.
    """

    name: str
    model: str
    size: int
    steps: int
    few_steps: int
    calls: Mapping[str, Call]
    levels: Sequence[Level]
    network: torch.dtype
    matrix: int
    copy: int
    races: int
    samples: int
    compiler: str
    patience: float = 30.0


SDXL = Workload(
    name="sdxl", model="random-sdxl", size=1024, steps=30, few_steps=4, calls=SDXL_CALLS, levels=LEVELS,
    network=torch.float16, matrix=8192, copy=2**30, races=50, samples=50, compiler="inductor",
)  # fmt: skip
# The demo model's attention at 64 pixels, half its usual size, with one row, since the interpreter takes 0.8 s for two
# rows of 256 tokens: 64 tokens with 1 head and 16 with 2. An identity has 50 tokens of the image and 4 of the face.
_DEMO_CALLS: Mapping[str, Call] = {
    "mixed-64": Call("mixed_attention", 1, 1, 64, 64, 64),
    "mixed-16": Call("mixed_attention", 1, 2, 16, 16, 16),
    "merged-64": Call("merged_cross_attention", 1, 1, 64, 54, 77),
    "merged-16": Call("merged_cross_attention", 1, 2, 16, 54, 77),
}
DEMO = Workload(
    name="demo", model="demo", size=64, steps=3, few_steps=2, calls=_DEMO_CALLS,
    levels=(
        Level("mixed attention, 64 tokens", _DEMO_CALLS["mixed-64"], 0, True),
        Level("mixed attention, 16 tokens", _DEMO_CALLS["mixed-16"], 0, False),
        Level("merged cross-attention, 64 queries", _DEMO_CALLS["merged-64"], 0, False),
    ),
    network=torch.float32, matrix=256, copy=2**20, races=2, samples=2, compiler="aot_eager",
    patience=600.0,  # on a CPU that may be shared with other work
)  # fmt: skip
WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in (SDXL, DEMO)}


@dataclass
class Bench:
    """The device, and the results so far.

    Args:
        device: a CUDA device, or the CPU with Triton's interpreter.
        workload: what is measured on it.
        quick: fewer samples and candidates.
        seconds_left: returns the remaining seconds.
        seed: seed of all inputs.
        ceilings: FLOP/s of a matrix product and bytes/s of a copy, once they are measured.
        results: results of earlier items, by name.
        keep: called with an item's partial result; if its process is stopped, that is its result.
    """

    device: torch.device
    workload: Workload
    quick: bool
    seconds_left: Callable[[], float]
    seed: int
    ceilings: dict[str, float] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    keep: Callable[[Result], None] = lambda result: None

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(self.seed)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def architecture(self) -> str:
        """The architecture whose candidates are tried; the interpreter tries Hopper's."""
        return architecture_of(self.device) if self.on_gpu else "sm_90"

    def time(self, calls: Sequence[Callable[[], object]], samples: int | None = None) -> Timing:
        """Time short calls in turn.

        On a GPU they are captured in a CUDA graph; calls that cannot be captured are timed by plain launches, and the
        timing's `captured` says so. On a CPU, a sample runs all calls once.

        Args:
            calls: the same work on different inputs.
            samples: number of samples; the workload's if None.
        """
        count = samples or (10 if self.quick and self.on_gpu else self.workload.samples)
        if not self.on_gpu:
            return _time_on_cpu(lambda: [call() for call in calls], count, len(calls))
        try:
            return time_on_gpu(calls, count)
        except RuntimeError:
            torch.cuda.synchronize()  # an error in the kernel itself is raised again here
            return time_on_gpu(calls, count, capture=False)

    def time_long(self, call: Callable[[], object], samples: int = 10) -> Timing:
        """Time a call that takes a millisecond or more; a sample is one call, including gaps between its launches.

        Args:
            call: launches on the current stream; may replay a CUDA graph.
            samples: number of samples, at least 2.
        """
        self._warm_up(call)
        if not self.on_gpu:
            return _time_on_cpu(call, min(samples, self.workload.samples), 1)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(samples)]
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return summarize([start.elapsed_time(end) for start, end in events], captured=False)

    def _warm_up(self, call: Callable[[], object]) -> None:
        began = time.monotonic()
        for _ in range(_WARM_CALLS if self.on_gpu else 1):
            call()
            self.synchronize()
            if time.monotonic() - began > _WARM_SECONDS:
                return

    def graphed(self, call: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Capture a call in a CUDA graph; on a CPU the replay is the call itself.

        Args:
            call: reads and writes the same memory every time.

        Returns:
            The replay, and what the call returned while it was captured: the memory that every replay writes.

        Raises:
            RuntimeError: the call cannot be captured.
        """
        if not self.on_gpu:
            return call, call()
        before, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(before)
        with torch.cuda.stream(side):  # compilation and first allocations stay out of the capture
            call()
        before.wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = call()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
        return graph.replay, outputs

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def sets(self, bytes_per_set: int) -> range:
        """Return a range with one index per set of inputs; enough sets that none is read from the L2 cache."""
        return range(input_sets(bytes_per_set, self.device) if self.on_gpu else 1)


def _time_on_cpu(call: Callable[[], object], samples: int, calls: int) -> Timing:
    milliseconds = []
    for _ in range(max(samples, 2)):
        began = time.perf_counter()
        call()
        milliseconds.append((time.perf_counter() - began) * 1e3 / calls)
    quantiles = statistics.quantiles(milliseconds, n=5, method="inclusive")
    return Timing(statistics.median(milliseconds), quantiles[0], quantiles[3], len(milliseconds), False)


@dataclass(frozen=True)
class Item:
    """One measurement or check.

    Its result is a dictionary for JSON. In it, `passed` says whether a check passed; `unavailable` says in a sentence
    why this machine cannot run it, `skipped` why it was not tried, and `error` why it failed.

    Args:
        name: name in the results and for --only.
        seconds: expected time; the item is skipped if less is left.
        measure: returns the result.
        op: if this operation's checks did not pass at this head size, the item is skipped.
        d: head size.
        always: whether the item runs whatever --only says.
        decides: whether the exit code depends on it.
        phase: 1 for the first command, 2 for the second.
        check: whether it shows that `op` is correct.
    """

    name: str
    seconds: float
    measure: Callable[[Bench], Result]
    op: str | None = None
    d: int = 64
    always: bool = False
    decides: bool = False
    phase: int = 1
    check: bool = False


def public(call: Call, inputs: Inputs) -> Tensor:
    """Call the operation as a user does."""
    i = inputs
    if call.op == "mixed_attention":
        return mixed_attention(i.q, i.k_id, i.v_id, i.k_t, i.v_t, i.style_strength)
    return merged_cross_attention(i.q, i.k_t, i.v_t, i.k_id, i.v_id, i.style_strength, i.identity_strength)
