"""The suite on a machine without a GPU: kernels in Triton's interpreter, tiny calls, times that are made up."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from suite_parts import MERGED, MIXED, FakeBench, spoil, timed
from torch import Tensor

import gpu_checks
import gpu_items
import gpu_rivals
import gpu_suite
from gpu_bench import Bench, Item
from gpu_items import AGAIN, OURS
from gpu_rivals import RIVALS, Rival
from gpu_suite import Suite
from infid_kernels.autotune import LEVELS, Trial, Tuned, select
from infid_kernels.measure import Call, Inputs, relative_rms


def test_what_is_right_is_timed_and_written(suite: Suite) -> None:
    assert suite.run(gpu_checks.correctness(), [timed("a", MIXED.op), timed("b", MERGED.op)])
    document = json.loads(suite.path.read_text())
    states = {name: item["state"] for name, item in document["items"].items()}
    assert states == {
        "correct mixed-4096 float16": "passed", "correct merged-4096 float16": "passed", "a": "measured",
        "b": "measured",
    }  # fmt: skip
    assert document["items"]["correct mixed-4096 float16"]["result"]["relative_rms"] <= 1e-3


def test_a_red_operation_is_not_timed_and_the_other_is(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    assert not suite.run(gpu_checks.correctness(), [timed("a", MIXED.op), timed("b", MERGED.op)])
    items = json.loads(suite.path.read_text())["items"]
    assert items["correct mixed-4096 float16"]["state"] == "FAILED"
    assert items["correct mixed-4096 float16"]["result"]["relative_rms"] == "nan"  # JSON has no NaN
    assert items["a"]["why"] == "mixed_attention with heads of 64 is red: its checks did not all pass"
    assert items["b"]["state"] == "measured"


def test_a_check_that_breaks_is_red(suite: Suite) -> None:
    def broken(bench: Bench) -> Any:
        raise RuntimeError("out of shared memory")

    assert not suite.run([Item("correct", 1.0, broken, MIXED.op)], [timed("a", MIXED.op)])
    assert suite.document["items"]["correct"]["why"] == "RuntimeError: out of shared memory"
    assert suite.document["items"]["a"]["state"] == "skipped"


def test_a_red_head_size_is_not_another_ones(suite: Suite) -> None:
    odd = Item("correct d = 128", 1.0, lambda bench: {"passed": False}, MIXED.op, 128, True, True)
    wide = Item("speed d = 128", 1.0, lambda bench: {"median": 1.0}, MIXED.op, 128)
    assert not suite.run([odd], [timed("a", MIXED.op), wide])
    states = {name: item["state"] for name, item in suite.document["items"].items()}
    assert states == {"correct d = 128": "FAILED", "a": "measured", "speed d = 128": "skipped"}


def test_what_was_skipped_is_measured_when_resumed(suite: Suite, bench: FakeBench) -> None:
    def once(name: str, result: dict[str, Any], seconds: float = 1.0, op: str | None = None) -> Item:
        return Item(name, seconds, lambda bench: calls.append(name) or result, op)

    calls: list[str] = []
    checks = [once("correct", {"passed": False}, op=MIXED.op)]
    ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e12}
    items = [once("ceilings", ceilings), once("long", {}, seconds=200.0), once("red", {}, op=MIXED.op), once("b", {})]
    assert not suite.run(checks, items)
    assert calls == ["correct", "ceilings", "b"]
    fresh = FakeBench(torch.device("cpu"), False, lambda: 300.0, 1)
    again = Suite(fresh, suite.path, json.loads(suite.path.read_text()), quiet=True)
    assert fresh.ceilings == ceilings
    assert not again.run(checks, items)  # what was wrong is still wrong
    assert calls == ["correct", "ceilings", "b", "long"]
    states = {name: item["state"] for name, item in again.document["items"].items()}
    assert states == {
        "correct": "FAILED",
        "ceilings": "measured",
        "long": "measured",
        "red": "skipped",
        "b": "measured",
    }


def test_what_does_not_fit_is_skipped_and_said(suite: Suite) -> None:
    assert suite.run([], [timed("long", seconds=200.0), timed("short")])
    assert suite.document["items"]["long"]["why"] == "it takes about 200 s, 95 s are left"
    assert suite.document["items"]["short"]["state"] == "measured"


def test_only_takes_what_begins_so_and_what_is_always_taken(suite: Suite) -> None:
    always = Item("ceilings", 1.0, lambda bench: {}, always=True)
    suite.run([], [always, timed("speed x"), timed("race")], only=["speed"])
    assert list(suite.document["items"]) == ["ceilings", "speed x"]


def dense_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    logits = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits.softmax(-1) @ v.double()).to(q.dtype), logits.logsumexp(-1).float()


@pytest.mark.parametrize(
    ("function", "call"),
    [(gpu_rivals.concat, MIXED), (gpu_rivals.flex, MIXED), (gpu_rivals.two_flash, MIXED), (gpu_rivals.pair, MERGED)],
    ids=["concat", "flex", "two flash", "pair"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_rivals_compute_the_same(
    function: gpu_rivals.Function, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_rivals, "flash_with_lse", dense_with_lse)  # flash itself needs a GPU
    inputs = call.inputs(torch.float16, torch.Generator().manual_seed(2))
    assert relative_rms(function(inputs), call.reference(inputs)) <= 1e-3


def test_every_rival_of_the_issue_is_there() -> None:
    names = " ".join(rival.name for rival in RIVALS if rival.op == MIXED.op and rival.complete)
    for wanted in ("flash", "cuDNN", "FlexAttention", "log-sum-exp"):
        assert wanted in names
    assert next(rival.name for rival in RIVALS if rival.op == MERGED.op) == "two attentions, eager"


def test_rivals_that_cannot_run_or_are_wrong_are_kept(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs: Inputs) -> Tensor:
        return gpu_rivals.concat(inputs) * 1.1

    rivals = (
        Rival("wrong", MIXED.op, lambda inputs: partial(wrong, inputs)),
        Rival("right", MIXED.op, lambda inputs: partial(gpu_rivals.concat, inputs)),
        Rival("part", MIXED.op, lambda inputs: partial(gpu_rivals.concat, inputs), complete=False),
        next(rival for rival in RIVALS if rival.name == "two flash by log-sum-exp"),
        Rival("long", MIXED.op, lambda inputs: partial(gpu_rivals.concat, inputs), seconds=1000.0),
    )
    monkeypatch.setattr(gpu_rivals, "RIVALS", rivals)
    bench.ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e12}
    result = gpu_items.speed("mixed-4096", "float16", bench)
    found = result["contenders"]
    assert list(found) == [OURS, "attention kernel alone", *(rival.name for rival in rivals), AGAIN]
    assert not found["wrong"]["right"]
    assert "flash" in found["two flash by log-sum-exp"]["error"]
    assert found["long"]["error"] == "skipped: it takes about 1000 s, 100 s are left"
    assert (found[OURS]["median"], found["right"]["median"]) == (1.0, 4.0)
    assert (result["best_rival"], result["times_faster"]) == ("right", 4.0)
    assert found[OURS]["of_matrix_ceiling"] == pytest.approx(result["flops"] / 1e-3 / 1e12)
    assert found[OURS]["of_bytes_floor"] == pytest.approx(result["bytes"] / 1e12 / 1e-3)


def test_the_mean_shift_is_right_both_ways(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Any, **_: Any) -> Any:
        def compiled(*arguments: Any) -> None:
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    result = gpu_items.mean_shift("mixed-4096", bench)
    assert max(result["relative_rms"].values()) <= 2e-3  # the keys it averages are rounded to fp16
    assert result["ways"]["by hidden states, compiled"] == {"error": "RuntimeError: no compiler"}
    assert result["ways"]["over keys and values"]["warm"]["samples"] == 50


def test_candidates_fill_an_entry(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(level: Any, device: Any, timer: Any, tried: Any) -> Tuned:
        trials = [Trial(candidate, 1e-4, timer([])) for candidate in tried]
        return Tuned(level, trials, select(level, trials, "sm_90", "H100"))

    monkeypatch.setattr(gpu_items, "tune", fake)
    monkeypatch.setattr(gpu_items, "architecture_of", lambda device: "sm_90")
    result = gpu_items.candidates(LEVELS[0], bench)
    assert [trial["configuration"]["descriptors"] for trial in result["trials"]].count(True) > 1
    assert result["entry"]["evidence"] == "measured on H100: 1.000 ms median of 50, next best 2.000 ms"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_suite.main(["--output", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "torch sees none" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true calls
    assert gpu_suite.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    everything = (*gpu_checks.correctness(), *gpu_items.items(quick=False))
    for item in everything:
        assert item.name in said
    assert f"about {sum(item.seconds for item in everything):.0f} s; --resume goes on" in said
    assert all(item.seconds <= 540 - gpu_suite._SLACK for item in everything)
    names = [item.name for item in everything]
    assert names.index("sanitizer memcheck") < names.index(f"candidates {LEVELS[0].name}")
    assert "mixed-4096     171.80   62.9  173.6, 173.6, 474.5, 1039.9" in said
    assert all(rival.name in said for rival in RIVALS)


def test_an_unknown_item_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["--only", "sped"]) == 1
    assert "no item begins with 'sped'" in capsys.readouterr().err


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_the_whole_run(
    right: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not right:
        spoil(monkeypatch)
    pretend(monkeypatch)
    rivals = [rival for rival in RIVALS if rival.name in ("two attentions, eager", "two flash by log-sum-exp")]
    monkeypatch.setattr(gpu_rivals, "RIVALS", rivals)
    code = gpu_suite.main(["--output", str(tmp_path), "--only", "speed", "--quick", "--limit-s", "10000"])
    said = capsys.readouterr()
    document = json.loads((tmp_path / "gpu-nvidia-h100-80gb-hbm3-20261123T160000.json").read_text())
    assert code == (0 if right else 1)
    assert said.out.splitlines()[-1].endswith("gpu-nvidia-h100-80gb-hbm3-20261123T160000.json")
    assert document["items"]["speed merged-4096 float16"]["result"]["best_rival"] == "two attentions, eager"
    assert "goal on an H200: " in said.out
    if right:
        assert "two flash by log-sum-exp: NotImplementedError" in said.out
        assert "TFLOP/s, missed by 100%" in said.out
    else:
        assert "mixed-4096 float16       skipped: mixed_attention with heads of 64 is red" in said.out


def pretend(monkeypatch: pytest.MonkeyPatch, commit: str = "1234") -> None:
    """Make the suite find an H100 on this machine."""
    gpu = {"name": "NVIDIA H100 80GB HBM3", "multiprocessors": 132}
    card = {"gpu": gpu, "date": "2026-11-23T16:00:00+00:00", "commit": commit} | dict.fromkeys(
        ("torch", "triton", "cuda", "changed_files"), ""
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_suite, "machine", lambda device: dict(card))
    monkeypatch.setattr(gpu_suite, "Bench", lambda device, *rest: FakeBench(torch.device("cpu"), *rest))


def test_results_are_resumed_only_on_the_same_commit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = [timed("a")]
    monkeypatch.setattr(gpu_checks, "correctness", list)
    monkeypatch.setattr(gpu_items, "items", lambda quick: items)
    pretend(monkeypatch)
    assert gpu_suite.main(["--output", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    items.append(timed("b"))
    assert gpu_suite.main(["--resume", str(path)]) == 0
    assert list(json.loads(path.read_text())["items"]) == ["a", "b"]
    capsys.readouterr()
    pretend(monkeypatch, "5678")
    assert gpu_suite.main(["--resume", str(path)]) == 1
    assert "has another commit; start afresh without --resume" in capsys.readouterr().err


def contenders(medians: dict[str, float]) -> dict[str, Any]:
    return {name: {"median": median, "right": True, "teraflops": 300.0} for name, median in medians.items()}


def test_merged_cross_attention_is_judged_by_the_eager_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true calls
    found = contenders({OURS: 1.0, "two attentions, eager": 1.6, "two attentions, compiled": 1.2})
    result = {"contenders": found, "best_rival": "two attentions, compiled", "times_faster": 1.2}
    card = {"name": "NVIDIA H200", "multiprocessors": 132}
    assert gpu_suite._goals("merged-4096", result, card) == [
        "    goal on an H200: 1.60 of 1.5 × two attentions, eager, met"
    ]


def test_a_missed_goal_comes_with_what_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = contenders({OURS: 0.1, "attention kernel alone": 0.09, "flash": 0.13})
    result = {
        "contenders": found, "best_rival": "flash", "times_faster": 1.3, "tiles_at_once": 2,
        "configuration": {"block_m": 128},
    }  # fmt: skip
    card = {"name": "NVIDIA H200", "multiprocessors": 132}
    assert gpu_suite._goals("mixed-1024", result, card) == [
        "    goal on an H200: 300 of 400 TFLOP/s, missed by 25%",
        "    goal on an H200: 1.30 of 1.15 × the best rival, met",
        "    limits: 320 tiles, 2 at once on a multiprocessor: 2 rounds, 61% filled",
        "    limits: the attention kernel alone takes 90.0 µs; at least: products 21.7 µs, memory 6.6 µs, "
        "exponentials 21.7 µs",
    ]
