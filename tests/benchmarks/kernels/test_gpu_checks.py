"""The suite's checks on a machine without a GPU: kernels in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from suite_parts import MERGED, MIXED, TINY, FakeBench, spoil
from torch import Tensor

from benchmarks.kernels import checks
from benchmarks.kernels.checks import Check
from benchmarks.suite.bench import DEMO, SDXL, Bench, Item, Workload
from benchmarks.suite.runner import Suite
from infid_kernels import mixed_attention
from infid_kernels.measure import Call
from infid_kernels.tuning import OPS, choices


@pytest.mark.usefixtures("tiny")
def test_the_public_operation_must_be_what_was_checked(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mixed_attention
    monkeypatch.setattr("benchmarks.suite.bench.mixed_attention", lambda *arguments: right(*arguments) + 1e-3)
    assert not suite.run(checks.correctness(TINY, "float16", 1))
    result = suite.document["items"]["correct mixed-4096 float16"]["result"]
    assert (result["public_is_the_same"], result["passed"]) == (False, False)


def test_a_launch_that_leaves_a_query_unwritten_fails(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check(Check(MIXED), torch.float16, bench)["passed"]
    spoil(monkeypatch)
    assert not checks.check(Check(MIXED), torch.float16, bench)["passed"]


def test_bf16_is_not_checked_where_it_is_multiplied_wrongly(bench: FakeBench) -> None:
    assert "bf16" in checks.check(Check(MIXED), torch.bfloat16, bench)["unavailable"]


def test_a_race_decides_the_exit_code(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = mixed_attention, [0]

    def moving(*arguments: Any) -> Tensor:
        calls[0] += 1
        return right(*arguments) * (1 + (calls[0] == 2) * 1e-2)

    assert suite.run([Item("race", 1.0, checks.race, decides=True)])
    monkeypatch.setattr("benchmarks.suite.bench.mixed_attention", moving)
    assert not suite.run([Item("race again", 1.0, checks.race, decides=True)])
    result = suite.document["items"]["race again"]["result"]
    assert (result["runs"], result["differing"]) == (3, {"mixed-4096": 1, "merged-4096": 0})


@pytest.fixture
def sanitized(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    """A bench that passes for one on a GPU."""
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(FakeBench, "synchronize", lambda bench: None)
    return bench


def sanitizer(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int, seconds: int = 0) -> None:
    """Put a program with this name on the path; it prints its arguments and exits with a given code."""
    program = folder / "compute-sanitizer"
    program.write_text(
        f'#!/bin/sh\necho "$@" "$PYTORCH_NO_CUDA_MEMORY_CACHING"\nsleep {seconds}\n'
        f'touch "{folder}/ended"\nexit {code}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.usefixtures("sanitized")
@pytest.mark.parametrize(("code", "state", "sound"), [(0, "passed", True), (9, "FAILED", False), (1, "error", True)])
def test_what_the_sanitizer_finds_decides(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, state: str, sound: bool
) -> None:
    sanitizer(monkeypatch, tmp_path, code)
    (item,) = (each for each in checks.sanitizers() if each.name == "sanitizer racecheck")
    assert suite.run([item]) == sound
    outcome = suite.document["items"]["sanitizer racecheck"]
    assert outcome["state"] == state
    assert outcome["result"]["exit_code"] == code
    assert outcome["result"]["output"][0].startswith("--tool racecheck --error-exitcode 9 ")
    assert outcome["result"]["output"][0].endswith(" -m benchmarks.kernels.checks racecheck 1")
    if code == 1:  # it could not run, which says nothing about the kernels
        assert outcome["why"] == "it ended with exit code 1"


def test_the_sanitizer_has_a_limit_of_its_own(
    sanitized: FakeBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sanitizer(monkeypatch, tmp_path, 0, seconds=60)
    monkeypatch.setattr(checks, "_SANITIZER_LIMIT", 0.5)
    assert checks.sanitize("memcheck", sanitized)["error"].startswith("it was stopped after")
    assert not (tmp_path / "ended").exists()


def test_without_the_sanitizer_that_is_recorded(sanitized: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda *_, **__: None)
    expected = {"unavailable": "compute-sanitizer is not installed on this machine"}
    assert checks.sanitize("memcheck", sanitized) == expected


def test_every_form_and_operation_runs_under_the_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[str, str]] = []
    cpu = torch.Generator()
    monkeypatch.setattr(torch, "device", lambda name: cpu.device)
    monkeypatch.setattr(torch, "Generator", lambda device: cpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(checks, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(checks, "public", lambda call, inputs: launched.append((call.op, "public")))
    monkeypatch.setattr(Call, "launched", lambda call, inputs, each: launched.append((call.op, checks.form_of(each))))
    checks.sanitized("memcheck")
    assert {(op, "public") for op in OPS} < set(launched)
    forms = {(op, checks.form_of(each)) for op in OPS for each in choices(op, "sm_90", 64)}
    assert forms == {each for each in launched if each[1] != "public"}
    assert len(forms) > len(OPS)
    before = set(launched)
    launched.clear()
    checks.sanitized("racecheck")
    assert {form for _, form in before - set(launched)} == {"library cudnn", "library flash"}


@pytest.mark.parametrize("call", [MIXED, MERGED], ids=lambda call: call.op)
@pytest.mark.parametrize(("content", "sliced"), [("large", False), ("ties", False), ("means", False), ("normal", True)])
def test_the_contents_of_checks(bench: FakeBench, call: Call, content: str, sliced: bool) -> None:
    wanted = Check(call, content, sliced)
    inputs = wanted.inputs(torch.float16, torch.Generator().manual_seed(3))
    plain = Check(call).inputs(torch.float16, torch.Generator().manual_seed(3))
    facts = {
        "large": inputs.q.abs().max() > 60,
        "ties": inputs.k_t.std(2).max() < 0.01,
        "means": inputs.k_t.mean() > 900,
        "normal": inputs.k_t.stride(2) == 3 * plain.k_t.stride(2) and torch.equal(inputs.k_t, plain.k_t),
    }
    assert facts[content]


@pytest.mark.parametrize("workload", [SDXL, DEMO], ids=lambda workload: workload.name)
def test_the_checks_meet_whole_and_odd_calls_and_every_content(workload: Workload) -> None:
    found = checks.checks(workload)
    assert set(workload.calls) < set(found)
    for op in OPS:
        mine = [each for each in found.values() if each.call.op == op]
        assert any(each.call.identity == 0 for each in mine)
        assert any(each.call.d not in (32, 64, 128) for each in mine)
        met = {(each.content, each.sliced) for each in mine}
        assert met >= {("large", False), ("ties", False), ("means", False), ("normal", True)}
