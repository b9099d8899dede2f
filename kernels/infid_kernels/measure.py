"""Calls of the attention operations on random inputs, their reference in float64, and their time on a GPU.

`infid-export tune` and `benchmarks/gpu_suite.py` measure with this. A launch is timed only after its result was
compared with float64. Its output is filled with NaN first, so that an element that is not written fails the comparison.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infid_kernels.arguments import empty_output, logit_scale
from infid_kernels.mean_shift import launch_mean_shift, launch_value_shift
from infid_kernels.merged_cross_attention_triton import launch_merged_cross_attention
from infid_kernels.mixed_attention_triton import launch_mixed_attention
from infid_kernels.operands import Operands
from infid_kernels.tuning import Choice, Configuration

# Relative RMS error against float64 on the same rounded inputs. Rounding the output costs up to half the spacing of
# fp16 and bf16, 4.9e-4 and 3.9e-3; rounding the probabilities adds the rest.
LIMITS: Mapping[torch.dtype, float] = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
_REFERENCE_ROWS = 1024  # queries at a time in float64: 1024 × 8192 logits are 67 MB
_CALLS_PER_SAMPLE = 20  # replaying a graph costs a few µs, below 1 % of 20 calls of 20 µs
_WARM_UP = 0.05  # seconds of work before the first sample, until the GPU's clocks are stable


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call; queries, keys and values are stored as `[B, N, H, d]`, as projections write them.

    Args:
        q: `[B, H, N, d]`.
        k_id: `[B, H, M, d]`.
        v_id: `[B, H, M, d]`.
        k_t: `[B, H, L, d]`.
        v_t: `[B, H, L, d]`.
        style_strength: `[B]` fp32, s.
        identity_strength: `[B]` fp32, λ.
    """

    q: Tensor
    k_id: Tensor
    v_id: Tensor
    k_t: Tensor
    v_t: Tensor
    style_strength: Tensor
    identity_strength: Tensor

    @property
    def operands(self) -> Operands:
        """Queries, keys and values."""
        return Operands(self.q, self.k_id, self.v_id, self.k_t, self.v_t)


@dataclass(frozen=True)
class Call:
    """The shape of one call.

    Args:
        op: `mixed_attention` or `merged_cross_attention`.
        rows: rows of the batch.
        heads: heads.
        queries: N.
        identity: identity tokens.
        text: text tokens.
        d: head size.
    """

    op: str
    rows: int
    heads: int
    queries: int
    identity: int
    text: int
    d: int = 64

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers of keys of the two segments."""
        return self.identity, self.text

    def inputs(self, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        """Return new random inputs; the text's statistics differ from the identity's, so that the shift matters.

        Args:
            dtype: of queries, keys and values.
            generator: creates them on its device; its state advances.
        """
        made = []
        for length, deviation, mean in (
            (self.queries, 1.0, 0.0),
            *((self.identity, 1.0, 0.0),) * 2,
            *((self.text, 0.7, 0.3),) * 2,
        ):
            shape = (self.rows, length, self.heads, self.d)
            values = torch.randn(shape, generator=generator, device=generator.device) * deviation + mean
            made.append(values.to(dtype).transpose(1, 2))
        strengths = [2 * torch.rand(self.rows, generator=generator, device=generator.device) for _ in range(2)]
        return Inputs(*made, *strengths)

    def launcher(self, inputs: Inputs, choice: Choice, even_n: bool) -> Callable[[Tensor], None]:
        """Return the launch of the attention kernel alone; the mean shift that it needs is computed here.

        Args:
            inputs: of this call.
            choice: tile sizes and form of the kernel, or a library.
            even_n: whether `block_n` divides both lengths.

        Returns:
            A function that writes the result into its argument.
        """
        i, scale = inputs, logit_scale(None, self.d)
        if self.op == "mixed_attention":
            shifts = launch_mean_shift(*i.operands.segments, i.style_strength)
            return lambda out: launch_mixed_attention(i.operands, shifts, scale, out, choice, even_n)
        assert isinstance(choice, Configuration)
        shift_v = launch_value_shift(i.v_id, i.v_t, i.style_strength)
        return lambda out: launch_merged_cross_attention(
            i.operands, shift_v, i.identity_strength, scale, out, choice, even_n
        )

    def launched(self, inputs: Inputs, choice: Choice, even_n: bool | None = None) -> Tensor:
        """Return the result of one launch, into an output filled with NaN."""
        out = empty_output(inputs.q).fill_(math.nan)
        fits = choice.divides(self.lengths) if even_n is None else even_n
        self.launcher(inputs, choice, fits)(out)
        return out

    def reference(self, inputs: Inputs) -> Tensor:
        """Return the result of the formula as written, in float64, a few queries of one head at a time."""
        result = torch.empty(inputs.q.shape, dtype=torch.float64, device=inputs.q.device)
        for row in range(self.rows):
            style, factor = inputs.style_strength[row].double(), inputs.identity_strength[row].double()
            for head in range(self.heads):
                q, k_id, v_id, k_t, v_t = (tensor[row, head].double() for tensor in inputs.operands)
                if self.identity:
                    k_id = k_id + style * (k_t.mean(0) - k_id.mean(0))
                    v_id = v_id + style * (v_t.mean(0) - v_id.mean(0))
                for start in range(0, self.queries, _REFERENCE_ROWS):
                    part = slice(start, start + _REFERENCE_ROWS)
                    result[row, head, part] = self._attended(q[part], k_id, v_id, k_t, v_t, factor)
        return result

    def _attended(self, q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, factor: Tensor) -> Tensor:
        if self.op == "mixed_attention":
            return _softmax_attention(q, torch.cat([k_id, k_t]), torch.cat([v_id, v_t]))
        text = _softmax_attention(q, k_t, v_t)
        return text + factor * _softmax_attention(q, k_id, v_id) if self.identity else text


# SDXL at 1024 × 1024: 10 layers with 10 heads of 4096 tokens, 60 with 20 heads of 1024. Two rows: the identity stream
# without and with condition. The text has 77 tokens, the identity 257 of the image and 4 of the face.
SDXL_CALLS: Mapping[str, Call] = {
    "mixed-4096": Call("mixed_attention", 2, 10, 4096, 4096, 4096),
    "mixed-1024": Call("mixed_attention", 2, 20, 1024, 1024, 1024),
    "merged-4096": Call("merged_cross_attention", 2, 10, 4096, 261, 77),
    "merged-1024": Call("merged_cross_attention", 2, 20, 1024, 261, 77),
}


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.T * logit_scale(None, q.shape[-1]), -1) @ v


def relative_rms(found: Tensor, expected: Tensor) -> float:
    """Return the RMS of the error over the RMS of the expected values; NaN if any value is NaN."""
    return float((found.double() - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Timing:
    """The time of one call.

    Args:
        median: milliseconds.
        low: 20 % quantile, milliseconds.
        high: 80 % quantile, milliseconds.
        samples: number of samples; each is the mean over the calls in one graph.
        captured: whether a CUDA graph was replayed; if not, the time includes the gaps between launches.
    """

    median: float
    low: float
    high: float
    samples: int
    captured: bool = True


def summarize(milliseconds: Sequence[float], captured: bool = True) -> Timing:
    """Return median and quantiles of times in milliseconds; at least two."""
    quantiles = statistics.quantiles(milliseconds, n=5, method="inclusive")
    return Timing(statistics.median(milliseconds), quantiles[0], quantiles[3], len(milliseconds), captured)


def input_sets(bytes_per_set: int, device: torch.device) -> int:
    """Return how many sets of inputs to cycle through, so that none is still in the L2 cache when it is used again."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return 1 + math.ceil(2 * cache / bytes_per_set)


def time_on_gpu(calls: Sequence[Callable[[], object]], samples: int = 50, capture: bool = True) -> Timing:
    """Time calls in turn, with CUDA events around replays of a graph that holds all of them.

    The graph excludes the gaps between launches: a launch takes the host longer than the smallest kernels run.

    Args:
        calls: the same work on different inputs, launched on the current stream.
        samples: number of replays that are timed.
        capture: whether to replay a CUDA graph; otherwise launches are timed one by one.

    Raises:
        RuntimeError: the calls cannot be captured, or CUDA failed.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    turns = [*calls] * math.ceil(_CALLS_PER_SAMPLE / len(calls))
    replay = _captured(calls, turns) if capture else lambda: [call() for call in turns]
    warm = time.monotonic() + _WARM_UP
    while time.monotonic() < warm:
        replay()
        torch.cuda.synchronize()
    events = [[_event(), _event()] for _ in range(samples)]
    for start, end in events:
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return summarize([start.elapsed_time(end) / len(turns) for start, end in events], capture)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(calls: Sequence[Callable[[], object]], turns: Sequence[Callable[[], object]]) -> Callable[[], object]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    before = torch.cuda.current_stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):  # compilation and first allocations stay out of the capture
        for call in calls:
            call()
    before.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in turns:
                call()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
    return graph.replay
