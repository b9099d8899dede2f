"""Choosing configurations without a GPU: the kernels run in Triton's interpreter, with made-up times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_cases import merged_oracle, mixed_oracle, relative
from torch import Tensor
from triton.runtime.errors import OutOfResources

from infid_kernels import library_attention, measure, tuning
from infid_kernels.autotune import LEVELS, Level, NoCandidateError, Timer, Trial, label, select, tune
from infid_kernels.autotune import measure as try_candidates
from infid_kernels.measure import Call, Timing, summarize, time_on_gpu
from infid_kernels.tuning import CANDIDATES, Choice, Configuration, Entry, Library

SMALL, TALL, LONG = (Configuration(*sizes) for sizes in ((32, 32, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)))
MIXED = Level("mixed", Call("mixed_attention", 2, 1, 40, 64, 128), 0, True)
MERGED = Level("merged", Call("merged_cross_attention", 1, 2, 40, 21, 7), 0, False)
Launch = Callable[..., None]


def times(*medians: float) -> Timer:
    """A timer that returns the given medians in turn."""
    left = list(medians)

    def timer(calls: Sequence[Callable[[], object]]) -> Timing:
        for call in calls:
            call()
        return Timing(left.pop(0), 0.0, 0.0, 50)

    return timer


def spoil(monkeypatch: pytest.MonkeyPatch, which: Configuration, how: Callable[[Tensor], object]) -> None:
    """Change the output of one configuration."""
    launch = measure.launch_mixed_attention

    def spoiled(*arguments: Any) -> None:
        launch(*arguments)
        out, configuration = arguments[3], arguments[4]
        if configuration == which:
            how(out)

    monkeypatch.setattr(measure, "launch_mixed_attention", spoiled)


def tried(level: Level, timer: Timer, *candidates: Choice) -> list[Trial]:
    return try_candidates(level, torch.device("cpu"), timer, 2, candidates)


def chosen(level: Level, trials: Sequence[Trial]) -> Entry:
    (entry,) = select(level, trials, "sm_90", "NVIDIA H100 80GB HBM3, triton 3.6.0")
    return entry


@pytest.mark.parametrize("level", [MIXED, MERGED], ids=lambda level: level.name)
def test_the_fastest_correct_candidate_wins(level: Level) -> None:
    entry = chosen(level, tried(level, times(0.431, 0.412, 0.5), SMALL, TALL, LONG))
    assert entry.configuration == TALL
    assert (entry.op, entry.architecture, entry.block_d, entry.even_n) == (level.call.op, "sm_90", 64, level.even_n)
    expected = "measured on NVIDIA H100 80GB HBM3, triton 3.6.0: 0.412 ms median of 50, next best 0.431 ms"
    assert entry.evidence == expected


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda out: out.mul_(1.01), "relative RMS error 1.0e-02, the limit is 1e-03"),
        (lambda out: out[0, 0, 3].fill_(float("nan")), "relative RMS error nan"),
    ],
    ids=["1 % off", "one query not written"],
)
def test_a_wrong_one_is_rejected_however_fast(
    monkeypatch: pytest.MonkeyPatch, how: Callable[[Tensor], object], reason: str
) -> None:
    spoil(monkeypatch, TALL, how)
    trials = tried(MIXED, times(0.431), SMALL, TALL)  # a second time is never requested
    assert trials[1].timing is None and reason in trials[1].rejection
    entry = chosen(MIXED, trials)
    assert entry.configuration == SMALL
    assert entry.evidence.endswith("0.431 ms median of 50, no other candidate was correct")


@pytest.mark.parametrize(
    "error",
    [OutOfResources(263168, 232448, "shared memory"), AssertionError("strides must be 16-byte aligned")],
    ids=["shared memory", "descriptors"],
)
def test_one_that_cannot_run_is_rejected_with_its_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: Tensor) -> None:
        raise error

    spoil(monkeypatch, SMALL, fail)
    trials = tried(MIXED, times(0.5), SMALL, TALL)
    assert trials[0].rejection == f"{type(error).__name__}: {error}".splitlines()[0]
    assert chosen(MIXED, trials).configuration == TALL


def test_blocks_that_do_not_divide_the_lengths_are_rejected_for_even_n() -> None:
    trials = tried(MIXED, times(0.5), Configuration(32, 128, 4, 2), SMALL)
    assert trials[0].rejection == "its blocks do not divide the lengths (64, 128)"
    assert chosen(MIXED, trials).configuration == SMALL


def test_of_equals_the_first_wins() -> None:
    assert chosen(MIXED, tried(MIXED, times(0.4, 0.4), LONG, SMALL)).configuration == LONG


def test_no_correct_candidate_is_an_error_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for which in (SMALL, TALL):
        spoil(monkeypatch, which, lambda out: out.zero_())
    trials = tried(MIXED, times(), SMALL, TALL)
    with pytest.raises(NoCandidateError, match=r"mixed_attention is correct for mixed: 32 × 32.*1\.0e\+00.*64 × 32"):
        chosen(MIXED, trials)


def test_beside_a_library_the_fastest_kernel_is_kept_for_bundles(tmp_path: Path, hopper: torch.device) -> None:
    level = LEVELS[0]
    trials = [
        Trial(choice, 1e-4, Timing(median, median, median, 50))
        for choice, median in ((SMALL, 0.44), (Library("flash"), 0.45), (Library("cudnn"), 0.39), (TALL, 0.42))
    ]
    entries = select(level, trials, "sm_90", "H100")
    assert [entry.configuration for entry in entries] == [Library("cudnn"), TALL]
    assert entries[0].evidence.endswith("0.390 ms median of 50, next best 0.420 ms")
    assert entries[1].evidence.endswith("0.420 ms median of 50, next best 0.440 ms")
    tuning.write(tmp_path / "tuning.json", entries)
    tuning.load(tmp_path / "tuning.json")
    call = ("mixed_attention", hopper, 64, 4096)
    assert tuning.choose(*call, (4096, 4096)) == (Library("cudnn"), True)
    assert tuning.choose_kernel(*call, (4096, 4096)) == (TALL, True)
    any_length = tuning.entry("mixed_attention", "sm_90", 64, 4096, False)
    assert any_length is not None and tuning.choose(*call, (4095, 4096)) == (any_length.configuration, False)


@pytest.mark.parametrize(("op", "library"), [("merged_cross_attention", "cudnn"), ("mixed_attention", "mkl")])
def test_a_file_with_a_library_that_does_not_compute_the_operation_is_rejected(
    op: str, library: str, tmp_path: Path
) -> None:
    tuning.write(tmp_path / "tuning.json", [Entry(op, "sm_90", 64, 0, True, Library(library), "")])
    with pytest.raises(ValueError, match=f"(there is|{op} has) no implementation by {library}"):
        tuning.read(tmp_path / "tuning.json")


def test_a_library_is_tried_like_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        logits = q.double() @ k.double().transpose(-1, -2) * scale
        return (logits.softmax(-1) @ v.double()).to(q.dtype), logits.logsumexp(-1).float()

    monkeypatch.setattr(library_attention, "LIBRARIES", {"cudnn": exact})
    level = replace(MIXED, call=Call("mixed_attention", 2, 1, 40, 128, 256))
    (trial,) = tried(level, times(0.3), Library("cudnn"))
    assert trial.timing is not None and trial.error is not None and trial.error <= 1e-3


def test_progress_names_each_candidate() -> None:
    seen: list[tuple[float, str]] = []
    try_candidates(
        MERGED, torch.device("cpu"), times(0.4, 0.4), 1, [SMALL, TALL], lambda *reported: seen.append(reported)
    )
    assert seen == [(0.0, "32 × 32, 4 warps, 2 stages"), (0.5, "64 × 32, 4 warps, 2 stages")]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tuning, "_measured", [])
    return torch.device("cuda")


def test_what_was_written_is_what_is_chosen(tmp_path: Path, hopper: torch.device) -> None:
    picks = (SMALL, replace(TALL, descriptors=True), LONG, SMALL, TALL, LONG)
    entries = [
        entry
        for level, pick in zip(LEVELS, picks, strict=True)
        for entry in select(level, [Trial(pick, 0.0, Timing(1.0, 1.0, 1.0, 50))], "sm_90", "")
    ]
    tuning.write(tmp_path / "tuning.json", entries)
    assert tuning.read(tmp_path / "tuning.json") == tuple(entries)
    before = tuning.choose("mixed_attention", hopper, 64, 4096, (4096, 4096))
    tuning.load(tmp_path / "tuning.json")
    assert tuning.choose("mixed_attention", hopper, 64, 4096, (4096, 4096)) == (SMALL, True) != before
    assert tuning.choose("mixed_attention", hopper, 64, 1024, (1024, 1024)) == (picks[1], True)
    assert tuning.choose("mixed_attention", hopper, 64, 3952, (3952, 3951)) == (LONG, False)
    assert tuning.choose("mixed_attention", hopper, 64, 988, (988, 988)) == (SMALL, False)
    assert tuning.choose("merged_cross_attention", hopper, 64, 4096, (261, 77)) == (TALL, False)
    assert tuning.choose("merged_cross_attention", hopper, 64, 1024, (261, 77)) == (LONG, False)
    other = tuning.entry("mixed_attention", "sm_90", 128, 4096, True)  # not measured: the table's entry stays
    assert other is not None and "compiled" in other.evidence


def test_forms_for_tma_are_tried_where_the_gpu_has_it() -> None:
    hopper = tuning.candidates("mixed_attention", "sm_90")
    assert len(set(hopper)) == len(hopper) > len(CANDIDATES)
    assert sum(each.descriptors for each in hopper[:6]) >= 2  # the quick ones have some
    assert tuning.candidates("mixed_attention", "sm_89") == tuple(CANDIDATES)


def test_merged_cross_attention_tries_the_blocks_with_the_least_padding_first() -> None:
    tried = tuning.candidates("merged_cross_attention", "sm_90")
    assert set(tried) == set(CANDIDATES)
    padded = [sum(-(-length // each.block_n) * each.block_n for length in (77, 261)) for each in tried]
    assert padded == sorted(padded)


def test_every_candidate_has_its_own_label() -> None:
    labels = [label(each) for each in tuning.candidates("mixed_attention", "sm_90")]
    assert len(set(labels)) == len(labels)
    assert "64 × 128, 4 warps, 2 stages, descriptors" in labels


def test_the_levels_reach_every_kind_of_call() -> None:
    for op in tuning.OPS:
        evens = {level.even_n for level in LEVELS if level.call.op == op}
        assert False in evens  # 77 and 261 tokens are never full blocks
    for level in LEVELS:
        tried = tuning.candidates(level.call.op, "sm_90")
        fits = [candidate.divides(level.call.lengths) for candidate in tried]
        assert all(fits) if level.even_n else not any(fits)


@pytest.mark.parametrize(
    "call",
    [MIXED.call, MERGED.call, Call("mixed_attention", 1, 2, 9, 0, 5, 32)],
    ids=lambda call: f"{call.op} {call.d}",
)
def test_the_reference_is_the_formula(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_REFERENCE_ROWS", 16)  # several parts, the last one shorter
    i = call.inputs(torch.float16, torch.Generator().manual_seed(3))
    tensors = [i.q, i.k_id, i.v_id, i.k_t, i.v_t]
    mixed = call.op == "mixed_attention"
    expected = (
        mixed_oracle(tensors, i.style_strength)
        if mixed
        else merged_oracle(tensors, i.style_strength, i.identity_strength)
    )
    assert relative(call.reference(i), expected) < 1e-13


def test_times_are_summed_up_by_median_and_quantiles() -> None:
    assert summarize([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == Timing(3.5, 2.0, 5.0, 6)


class FakeCuda:
    """The parts of torch.cuda that timing uses; each call advances an otherwise fixed clock by 2 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capturable: bool = True) -> None:
        self.clock, self.calls, self.replays, self.stream = 0.0, 0, 0, "own"
        self.recorded: list[Callable[[], object]] | None = None
        self._capturable = capturable
        fakes = {
            "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
            "stream": lambda side: nullcontext(),
            "set_stream": lambda stream: setattr(self, "stream", "own"),
            "synchronize": lambda: None,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": self.capture,
            "Event": lambda enable_timing: FakeEvent(self),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def capture(self, graph: object) -> Iterator[None]:
        self.stream = "capture's"
        before = self.calls
        yield
        if not self._capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.in_graph, self.calls = self.calls - before, before

    def replay(self) -> None:
        self.replays += 1
        self.clock += 2.0 * self.in_graph

    def call(self) -> None:
        self.calls += 1


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def record(self) -> None:
        self.at = self._cuda.clock

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_a_time_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert time_on_gpu([cuda.call] * 3, samples=4) == Timing(2.0, 2.0, 2.0, 4)
    assert cuda.in_graph == 21  # whole rounds over three sets, at least 20 calls
    assert cuda.calls == 3  # each set once before the capture, for compilation
    assert cuda.replays > 4  # some for warmup
    assert cuda.stream == "own"


def test_after_a_capture_that_fails_the_stream_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, capturable=False)
    with pytest.raises(RuntimeError, match="not permitted"):
        time_on_gpu([cuda.call])
    assert cuda.stream == "own"
    assert not time_on_gpu([cuda.call], capture=False).captured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_level_is_tuned_on_this_gpu() -> None:
    device = torch.device("cuda")
    tuned = tune(LEVELS[1], device, partial(time_on_gpu, samples=5), CANDIDATES[2:6])
    (entry,) = tuned.entries
    assert entry.configuration in CANDIDATES[2:6]
    assert torch.cuda.get_device_name(device) in entry.evidence
    assert all(trial.timing is None or 0 < trial.timing.median < 10 for trial in tuned.trials)


def test_one_sample_is_rejected() -> None:
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        time_on_gpu([lambda: None], samples=1)
