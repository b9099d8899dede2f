"""Work in its own process group: it ends at its time limit, together with its children, and with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from suite_parts import FakeBench

from benchmarks.suite import child
from benchmarks.suite.bench import Bench
from benchmarks.suite.child import measure_in_child


def gone(process: int) -> bool:
    """Return whether a process ends within ten seconds; a zombie counts as ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def number_in(path: Path) -> int:
    for _ in range(300):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


def grandchild(path: Path) -> list[str]:
    return ["sh", "-c", f"sleep 600 & echo $! > {path}; echo started; wait"]


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    ended = child.run(grandchild(tmp_path / "pid"), 2.0)
    assert (ended.code, ended.output) == (None, ["started"])
    assert gone(number_in(tmp_path / "pid"))


def test_a_child_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    ended = child.run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path / 'pid'}; exit 3"], 60.0)
    assert ended.code == 3
    assert gone(number_in(tmp_path / "pid"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_parent_takes_its_children_along(tmp_path: Path, number: signal.Signals) -> None:
    # Its thread reports when it waits for its child; before that, there is no child to end with it. Background jobs of
    # a shell ignore SIGINT, and so would what they start.
    program = (
        "import pathlib, signal, threading, time\n"
        "from benchmarks import gpu_suite\n"
        "from benchmarks.suite import child\n"
        "signal.signal(signal.SIGTERM, gpu_suite._stop)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def say():\n"
        "    while not child._groups:\n"
        "        time.sleep(0.01)\n"
        f"    pathlib.Path({str(tmp_path / 'waits')!r}).write_text('1')\n"
        "threading.Thread(target=say, daemon=True).start()\n"
        f"child.run({grandchild(tmp_path / 'pid')!r}, 600)\n"
    )
    paths = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths},
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        assert number_in(tmp_path / "waits")
        process = number_in(tmp_path / "pid")
        parent.send_signal(number)
        assert parent.wait(30) != 0
        assert gone(process)
    finally:
        parent.kill()


def test_children_can_be_killed_by_a_process_that_does_not_unwind(tmp_path: Path) -> None:
    started = subprocess.Popen(grandchild(tmp_path / "pid"), start_new_session=True)
    process = number_in(tmp_path / "pid")
    child._groups.add(started.pid)
    child.kill_all()
    child._groups.discard(started.pid)
    assert started.wait(10) == -signal.SIGKILL
    assert gone(process)


def slow(bench: Bench, seconds: float) -> dict[str, Any]:
    """Measured in a child: stores a result, then takes a long time."""
    bench.keep({"so far": bench.results["before"]["median"]})
    time.sleep(seconds)
    return {"workload": bench.workload.name, "seed": bench.seed, "left": bench.seconds_left()}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, bench: FakeBench) -> None:
    """Let a child import this file."""
    paths = (str(Path(__file__).parent), *sys.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(entry or ".").resolve()) for entry in paths))
    bench.results["before"] = {"median": 2.0}


def test_a_function_is_measured_in_a_child(bench: FakeBench) -> None:
    result = measure_in_child("test_gpu_child:slow", bench, 60, seconds=0)
    assert result["seed"] == bench.seed
    assert result["workload"] == "demo"
    assert 0 < result["left"] <= 60
    assert "error" not in result


def test_what_a_stopped_child_kept_is_its_result(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = subprocess.Popen.wait

    def until_it_has_kept_something(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        kept = Path(process.args[-1]).with_name("result.json")
        while timeout is not None and not kept.exists():
            time.sleep(0.05)
        return wait(process, None if timeout is None else 0.0)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_has_kept_something)
    result = measure_in_child("test_gpu_child:slow", bench, 60, seconds=600)
    assert result["so far"] == 2.0
    assert result["error"].startswith("it was stopped after")


def test_a_child_has_no_more_time_than_is_left(bench: FakeBench) -> None:
    bench.seconds_left = lambda: child.RESERVE + 0.5
    assert measure_in_child("test_gpu_child:slow", bench, 600, seconds=600)["error"].startswith("it was stopped after")


def test_a_child_that_breaks_says_why(bench: FakeBench) -> None:
    result = measure_in_child("test_gpu_child:slow", bench, 60, seconds="long")
    assert result["so far"] == 2.0
    assert result["error"].startswith("its process ended with exit code 1: TypeError")
    assert any("Traceback" in line for line in result["output"])
