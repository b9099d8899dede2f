from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from infid_export.cli.progress_bar import Estimate, TerminalReporter, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_left_covers_the_whole_work(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.plan({"export": 100.0, "parity": 300.0})
    assert estimate.read() == (0.0, pytest.approx(400.0))
    estimate.enter("export")
    estimate.update(0.5)
    clock.now += 50
    done, left = estimate.read()
    assert done == pytest.approx(50 / 400)
    assert left == pytest.approx(350, rel=0.01)


def test_a_slow_machine_corrects_the_plan(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.plan({"export": 100.0, "parity": 300.0})
    estimate.enter("export")
    clock.now += 200  # twice as long as planned
    estimate.leave()
    done, left = estimate.read()
    assert done == pytest.approx(0.25)
    assert 500 < left < 600  # between 300 and 2 · 300, with the plan still weighing a little


def test_a_stage_that_reports_nothing_moves_by_time_and_never_finishes_by_it(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.plan({"export": 100.0, "rest": 100.0})
    estimate.enter("export")
    clock.now += 50
    middle, _ = estimate.read()
    assert 0.2 < middle < 0.3
    clock.now += 10_000
    late, left = estimate.read()
    assert late <= 0.5
    assert left > 0


def test_done_never_falls(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.plan({"export": 100.0, "rest": 100.0})
    estimate.enter("export")
    seen = []
    for fraction in (0.0, 0.0, 0.0, 0.1, 0.05, 0.6):
        clock.now += 20
        estimate.update(fraction)
        seen.append(estimate.read()[0])
    assert seen == sorted(seen)


def test_a_second_plan_starts_anew(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.plan({"a": 10.0})
    estimate.enter("a")
    estimate.leave()
    assert estimate.read()[0] == 1.0
    clock.now += 500
    estimate.plan({"a": 10.0})
    assert estimate.read() == (0.0, pytest.approx(10.0))
    assert estimate.elapsed == 0.0


def test_a_stage_that_was_not_planned_counts_nothing(clock: Clock) -> None:
    estimate = Estimate(clock)
    estimate.enter("surprise")
    estimate.update(0.5)
    assert estimate.read() == (0.0, 0.0)
    clock.now += 5
    assert estimate.times() == "0:05 elapsed"  # the time left is unknown, so none is shown
    estimate.plan({"work": 60.0})
    assert estimate.times() == "0:00 elapsed, 1:00 left"


def test_plain_lines_are_rare(clock: Clock) -> None:
    stream = io.StringIO()
    with TerminalReporter(Console(file=stream, width=80), clock) as reporter:
        reporter.plan({"export": 100.0})
        with reporter.stage("export") as stage:
            for step in range(100):
                clock.now += 1
                stage.update((step + 1) / 100, f"step {step + 1}")
        reporter.note("a choice")
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "a choice"
    assert 18 <= len(lines) - 1 <= 21  # 100 seconds, one line every five
    assert re.fullmatch(r" {0,2}\d+% export step \d+ \(\d:\d\d elapsed, \d:\d\d left\)", lines[5])
    assert "\x1b" not in stream.getvalue()


def test_a_log_shows_how_a_stage_ended(clock: Clock) -> None:
    stream = io.StringIO()
    with TerminalReporter(Console(file=stream, width=80), clock) as reporter:
        reporter.plan({"caching": 1.0, "training": 1.0})
        with reporter.stage("caching"):
            clock.now += 0.1
        with reporter.stage("training") as stage:
            for step in (1, 2):
                clock.now += 0.1
                stage.update(step / 2, f"step {step} of 2")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "training step 2 of 2" in lines[1]


@pytest.mark.parametrize("width", [40, 200])
def test_a_terminal_gets_one_bar_that_is_cleared(clock: Clock, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    with TerminalReporter(console, clock) as reporter:
        reporter.plan({"onnx/identity_encoder.onnx": 100.0})
        with reporter.stage("onnx/identity_encoder.onnx") as stage:
            clock.now += 61
            stage.update(0.5, "a detail that is far too long for the line of a small terminal")
            assert reporter._live is not None
            reporter._live.refresh()
            drawn = stream.getvalue()
            reporter.note("a choice")
    assert " 50% 1:01 elapsed" in drawn
    assert ("━" in drawn) == (width == 200)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert all(len(line) <= width for line in re.split(r"[\r\n]", plain))
    assert "a choice\n" in stream.getvalue().replace("\r", "")
    assert stream.getvalue().rstrip("\n").endswith("\x1b[2K")  # the bar's line is erased


def test_durations() -> None:
    assert [duration(seconds) for seconds in (-3, 0, 61, 3599.6, 7325)] == [
        "0:00",
        "0:00",
        "1:01",
        "1:00:00",
        "2:02:05",
    ]
