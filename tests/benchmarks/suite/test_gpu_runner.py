"""How the suite runs its items on a machine without a GPU: kernels in Triton's interpreter, made-up times."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from suite_parts import MERGED, MIXED, TINY, FakeBench, spoil, timed

from benchmarks.kernels import checks
from benchmarks.suite import child
from benchmarks.suite.bench import Bench, Item
from benchmarks.suite.runner import Suite

pytestmark = pytest.mark.usefixtures("tiny")


def states(suite: Suite) -> dict[str, str]:
    return {name: item["state"] for name, item in json.loads(suite.path.read_text())["items"].items()}


def test_what_is_right_is_timed_and_written(suite: Suite) -> None:
    checked = checks.correctness(TINY, "float16", 1)
    assert suite.run([*checked, timed("a", MIXED.op), timed("b", MERGED.op)])
    assert states(suite) == {
        "correct mixed-4096 float16": "passed", "correct merged-4096 float16": "passed", "a": "measured",
        "b": "measured",
    }  # fmt: skip
    assert suite.document["items"]["correct mixed-4096 float16"]["result"]["relative_rms"] <= 1e-3
    assert suite.bench.results["a"] == {"median": 1.0}


def test_an_operation_that_failed_is_not_timed_and_the_other_is(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    checked = checks.correctness(TINY, "float16", 1)
    assert not suite.run([*checked, timed("a", MIXED.op), timed("b", MERGED.op)])
    items = json.loads(suite.path.read_text())["items"]
    assert items["correct mixed-4096 float16"]["state"] == "FAILED"
    assert items["correct mixed-4096 float16"]["result"]["relative_rms"] == "nan"  # JSON has no NaN
    assert items["a"]["why"].startswith("mixed_attention with head size 64 is not known to be correct")
    assert items["b"]["state"] == "measured"
    assert "correct mixed-4096 float16" not in suite.bench.results


def broken(bench: Bench) -> Any:
    bench.keep({"so far": 1})
    raise RuntimeError("out of shared memory")


def test_a_check_that_breaks_failed(suite: Suite) -> None:
    assert not suite.run([Item("correct", 1.0, broken, MIXED.op, check=True), timed("a", MIXED.op)])
    assert suite.document["items"]["correct"]["why"] == "RuntimeError: out of shared memory"
    assert suite.document["items"]["correct"]["result"] == {"so far": 1}
    assert suite.document["items"]["a"]["state"] == "skipped"


def test_a_check_that_cannot_be_made_here_keeps_its_operation_from_being_timed(suite: Suite) -> None:
    check = Item("correct", 1.0, lambda bench: {"unavailable": "no bf16"}, MIXED.op, decides=True, check=True)
    assert suite.run([check, timed("a", MIXED.op)])  # that is not a fault
    assert states(suite) == {"correct": "unavailable", "a": "skipped"}


def test_only_what_decides_fails_the_run(suite: Suite) -> None:
    reported = Item("reported", 1.0, lambda bench: {"error": "it was stopped after 60 s"}, decides=True)
    assert suite.run([Item("a", 1.0, broken), reported])
    assert states(suite) == {"a": "error", "reported": "error"}
    assert not suite.run([Item("b", 1.0, broken, decides=True)])


def test_a_failed_head_size_is_not_another_ones(suite: Suite) -> None:
    odd = Item("correct d = 128", 1.0, lambda bench: {"passed": False}, MIXED.op, 128, check=True)
    wide = Item("speed d = 128", 1.0, lambda bench: {"median": 1.0}, MIXED.op, 128)
    assert not suite.run([odd, timed("a", MIXED.op), wide])
    assert states(suite) == {"correct d = 128": "FAILED", "a": "measured", "speed d = 128": "skipped"}


def test_what_was_skipped_is_measured_when_resumed(suite: Suite) -> None:
    def once(name: str, result: dict[str, Any], seconds: float = 1.0, **rest: Any) -> Item:
        return Item(name, seconds, lambda bench: calls.append(name) or result, **rest)

    calls: list[str] = []
    ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e12}
    items = [
        once("correct", {"passed": False}, op=MIXED.op, check=True), once("ceilings", ceilings),
        once("long", {}, seconds=200.0), once("wrong", {}, op=MIXED.op), once("b", {}),
        once("none", {"unavailable": "no such tool"}), Item("broken", 1.0, broken),
    ]  # fmt: skip
    assert not suite.run(items)
    assert calls == ["correct", "ceilings", "b", "none"]
    fresh = FakeBench(torch.device("cpu"), TINY, False, lambda: 300.0, 1)
    again = Suite(fresh, suite.path, json.loads(suite.path.read_text()), suite.restart, quiet=True)
    assert fresh.ceilings == ceilings
    assert fresh.results["ceilings"] == ceilings
    assert not again.run(items)  # what was wrong is still wrong
    assert calls == ["correct", "ceilings", "b", "none", "long"]
    assert states(again) == {
        "correct": "FAILED", "ceilings": "measured", "long": "measured", "wrong": "skipped", "b": "measured",
        "none": "unavailable", "broken": "error",
    }  # fmt: skip


def test_what_does_not_fit_is_skipped_with_the_reason(suite: Suite) -> None:
    assert suite.run([timed("long", seconds=200.0), timed("short")])
    assert suite.document["items"]["long"]["why"] == "it takes about 200 s, and 95 s are left"
    assert suite.document["items"]["short"]["state"] == "measured"


def test_an_item_that_hangs_is_an_error_and_the_program_starts_anew(
    bench: FakeBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench.workload = replace(bench.workload, patience=0.2)
    restarted, killed = threading.Event(), []
    written: list[dict[str, Any]] = []

    def restart() -> None:
        written.append(json.loads((tmp_path / "result.json").read_text()))
        restarted.set()

    def hang(bench: Bench) -> dict[str, Any]:
        bench.keep({"trials": 3})
        assert restarted.wait(30)
        return {}

    monkeypatch.setattr(child, "kill_all", lambda: killed.append(True))
    suite = Suite(bench, tmp_path / "result.json", {"model": "demo"}, restart, quiet=True)
    suite.run([timed("before"), Item("hangs", 0.01, hang)])
    (document,) = written
    assert document["items"]["before"]["state"] == "measured"
    assert (document["items"]["hangs"]["state"], document["items"]["hangs"]["result"]) == ("error", {"trials": 3})
    assert document["items"]["hangs"]["why"].startswith("it was stopped after 0 s")
    assert document["restarts"][0]["item"] == "hangs"
    assert killed == [True]


def test_a_gpu_that_is_lost_starts_the_program_anew(
    bench: FakeBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    restarts: list[bool] = []

    def lost() -> None:
        if "rejected" in suite.document["items"]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(bench, "synchronize", lost)
    suite = Suite(bench, tmp_path / "result.json", {"model": "demo"}, lambda: restarts.append(True), quiet=True)
    # an item that records the fault as one candidate's result looks as if it had been measured
    suite.run([timed("before"), timed("rejected")])
    assert restarts == [True]
    (restart,) = json.loads(suite.path.read_text())["restarts"]
    assert restart["item"] == "rejected"
    assert restart["why"] == "this process has lost the GPU: CUDA error: an illegal memory access was encountered"


def test_kernels_compiled_by_an_item_are_counted(suite: Suite) -> None:
    def compiling(bench: Bench) -> dict[str, Any]:
        for hit in (True, False):
            listener = triton.knobs.compilation.listener
            listener(src=SimpleNamespace(name="kernel"), metadata={}, metadata_group={}, times=None, cache_hit=hit)
        return {}

    suite.run([Item("late", 1.0, compiling), timed("a")])
    assert suite.document["items"]["late"]["kernels_compiled"] == ["kernel"]
    assert "kernels_compiled" not in suite.document["items"]["a"]
    assert triton.knobs.compilation.listener is None
