"""What everything that `gpu_suite.py` measures shares: the device with its clock, and what an item of the suite is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infid_kernels import merged_cross_attention, mixed_attention
from infid_kernels.measure import Call, Inputs, Timing, input_sets, time_on_gpu

Result = dict[str, Any]
DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


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
        op: if this operation is red at this head size, the item is skipped.
        d: head size.
        always: whether --only cannot leave it out.
        decides: whether the exit code depends on it.
    """

    name: str
    seconds: float
    measure: Callable[[Bench], Result]
    op: str | None = None
    d: int = 64
    always: bool = False
    decides: bool = False


def public(call: Call, inputs: Inputs) -> Tensor:
    """Call the operation as a user does."""
    i = inputs
    if call.op == "mixed_attention":
        return mixed_attention(i.q, i.k_id, i.v_id, i.k_t, i.v_t, i.style_strength)
    return merged_cross_attention(i.q, i.k_t, i.v_t, i.k_id, i.v_id, i.style_strength, i.identity_strength)
