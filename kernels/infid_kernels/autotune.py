"""Measure candidates on a GPU: the fastest correct one becomes an entry of the tuning table.

A candidate that does not compile, or whose output differs from float64 by more than the limit, is rejected with its
reason, however fast it is. Only the attention kernel is timed: the mean shift before it does not depend on the
configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton

from infid_kernels.arguments import empty_output
from infid_kernels.measure import LIMITS, SDXL_CALLS, Call, Inputs, Timing, input_sets, relative_rms
from infid_kernels.tuning import Choice, Entry, Library, Only, architecture_of, runs

Timer = Callable[[Sequence[Callable[[], object]]], Timing]
Progress = Callable[[float, str], None]  # fraction done, and what is being measured now
_DTYPE = torch.float16  # the dtype of SDXL's engines; bf16 has the same instructions and rates


@dataclass(frozen=True)
class Level:
    """A call that represents all calls of its kind.

    Args:
        name: name in progress and results.
        call: the call that is measured.
        queries: smallest number of queries that the choice is for.
        even_n: whether the choice is for segments whose lengths `block_n` divides.
    """

    name: str
    call: Call
    queries: int
    even_n: bool


# The choice at 4096 queries holds from 2048, the geometric mean of the two levels. The lengths with a tail are those of
# SDXL's 832 × 1216 bucket, whose latents of 104 × 152 make 52 · 76 = 3952 and 26 · 38 = 988 tokens.
_FROM = 2048
LEVELS: Sequence[Level] = (
    Level("mixed attention, 4096 tokens", SDXL_CALLS["mixed-4096"], _FROM, True),
    Level("mixed attention, 1024 tokens", SDXL_CALLS["mixed-1024"], 0, True),
    Level("mixed attention, 3952 tokens", Call("mixed_attention", 2, 10, 3952, 3952, 3952), _FROM, False),
    Level("mixed attention, 988 tokens", Call("mixed_attention", 2, 20, 988, 988, 988), 0, False),
    Level("merged cross-attention, 4096 queries", SDXL_CALLS["merged-4096"], _FROM, False),
    Level("merged cross-attention, 1024 queries", SDXL_CALLS["merged-1024"], 0, False),
)


class NoCandidateError(RuntimeError):
    """No candidate of a level compiled and was correct; the message gives every reason."""


@dataclass(frozen=True)
class Trial:
    """The result of one candidate.

    Args:
        configuration: the candidate.
        error: its relative RMS error against float64; None if it did not run.
        timing: None if it was rejected.
        rejection: why it was rejected, empty if it was not.
    """

    configuration: Choice
    error: float | None
    timing: Timing | None
    rejection: str = ""


@dataclass(frozen=True)
class Tuned:
    """What was measured at one level.

    Args:
        level: the level.
        trials: results of all candidates.
        entries: the choice, with its evidence, and what callers take that cannot run it; see `select`.
    """

    level: Level
    trials: Sequence[Trial]
    entries: Sequence[Entry]


def tune(
    level: Level, device: torch.device, timer: Timer, candidates: Sequence[Choice],
    progress: Progress = lambda fraction, detail: None,
) -> Tuned:  # fmt: skip
    """Measure all candidates at one level on a GPU.

    Args:
        level: the level to measure.
        device: a CUDA device.
        timer: times calls in turn.
        candidates: candidates to measure.
        progress: called before each candidate.

    Raises:
        NoCandidateError: no candidate is correct.
        ValueError: the GPU is older than every architecture of the table.
    """
    architecture = architecture_of(device)
    element = torch.finfo(_DTYPE).bits // 8
    tokens = 2 * level.call.queries + 2 * sum(level.call.lengths)
    sets = input_sets(tokens * level.call.rows * level.call.heads * level.call.d * element, device)
    trials = measure(level, device, timer, sets, candidates, progress)
    machine = f"{torch.cuda.get_device_name(device)}, triton {triton.__version__}"
    return Tuned(level, trials, select(level, trials, architecture, machine))


def measure(
    level: Level, device: torch.device, timer: Timer, sets: int, candidates: Sequence[Choice],
    progress: Progress = lambda fraction, detail: None,
) -> list[Trial]:  # fmt: skip
    """Check and time every candidate on the same fresh inputs.

    Args:
        level: the level to measure.
        device: where the inputs are made.
        timer: times calls in turn.
        sets: number of sets of inputs, which are used in turn.
        candidates: candidates to measure.
        progress: called before each candidate.
    """
    generator = torch.Generator(device)
    generator.seed()
    inputs = [level.call.inputs(_DTYPE, generator) for _ in range(sets)]
    expected = level.call.reference(inputs[0])
    trials = []
    for index, candidate in enumerate(candidates):
        progress(index / len(candidates), label(candidate))
        try:
            trials.append(_trial(level, candidate, inputs, expected, timer))
        # Triton's own errors (too much shared memory, does not compile), RuntimeError from its passes, CUDA and
        # libraries, AssertionError from its tensor descriptors, and ValueError from the Gluon form
        except (triton.TritonError, RuntimeError, AssertionError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            trials.append(Trial(candidate, None, None, reason.splitlines()[0]))
    return trials


def _trial(level: Level, candidate: Choice, inputs: Sequence[Inputs], expected: torch.Tensor, timer: Timer) -> Trial:
    if level.even_n and not candidate.divides(level.call.lengths):
        return Trial(candidate, None, None, f"its blocks do not divide the lengths {level.call.lengths}")
    error, limit = relative_rms(level.call.launched(inputs[0], candidate, level.even_n), expected), LIMITS[_DTYPE]
    if not error <= limit:  # rejects NaN as well
        return Trial(candidate, error, None, f"relative RMS error {error:.1e}, the limit is {limit:.0e}")
    launchers = [(level.call.launcher(each, candidate, level.even_n), empty_output(each.q)) for each in inputs]
    calls = [lambda launch=launch, out=out: launch(out) for launch, out in launchers]
    return Trial(candidate, error, timer(calls))


def select(level: Level, trials: Sequence[Trial], architecture: str, machine: str) -> list[Entry]:
    """Return the fastest correct candidate as an entry; in a tie, the one that was measured first.

    If that is a library, the fastest of our kernels follows, and if that is not plain, the fastest in plain form: for
    callers that cannot run the others.

    Args:
        level: the level that was measured.
        trials: results of all candidates.
        architecture: such as `sm_90`.
        machine: GPU and versions, for the evidence.

    Raises:
        NoCandidateError: no candidate is correct.
    """
    correct = sorted((trial for trial in trials if trial.timing is not None), key=_median)
    if not correct:
        reasons = "; ".join(f"{label(trial.configuration)}: {trial.rejection}" for trial in trials)
        raise NoCandidateError(f"no candidate of {level.call.op} is correct for {level.name}: {reasons}")
    ranked: list[list[Trial]] = []
    callers: tuple[Only | None, ...] = (None, "kernels", "plain")
    for only in callers:
        fitting = [trial for trial in correct if runs(trial.configuration, only)]
        if fitting and fitting[0] not in (trials[0] for trials in ranked):
            ranked.append(fitting)
    return [_entry(level, trials, architecture, machine) for trials in ranked]


def _entry(level: Level, ranked: Sequence[Trial], architecture: str, machine: str) -> Entry:
    """Return the first of several correct trials as an entry."""
    timing = ranked[0].timing
    assert timing is not None
    runner_up = f"next best {_median(ranked[1]):.3f} ms" if len(ranked) > 1 else "no other candidate was correct"
    evidence = f"measured on {machine}: {timing.median:.3f} ms median of {timing.samples}, {runner_up}"
    block_d = triton.next_power_of_2(level.call.d)
    configuration = ranked[0].configuration
    return Entry(level.call.op, architecture, block_d, level.queries, level.even_n, configuration, evidence)


def _median(trial: Trial) -> float:
    return math.inf if trial.timing is None else trial.timing.median


def label(choice: Choice) -> str:
    """Return a choice in words."""
    if isinstance(choice, Library):
        return f"two attentions by {choice.library}"
    forms = [name for name, chosen in (("descriptors", choice.descriptors), ("Gluon", choice.gluon)) if chosen]
    sizes = f"{choice.block_m} × {choice.block_n}, {choice.num_warps} warps, {choice.num_stages} stages"
    return ", ".join([sizes, *forms])
