"""The suite's checks on a machine without a GPU: kernels in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from suite_parts import MERGED, MIXED, FakeBench, spoil
from torch import Tensor

import gpu_bench
import gpu_checks
import gpu_items
from gpu_checks import Check
from gpu_suite import Suite
from infid_kernels.measure import Call
from infid_kernels.tuning import OPS


def test_the_public_operation_must_be_what_was_checked(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_bench.mixed_attention
    monkeypatch.setattr(gpu_bench, "mixed_attention", lambda *arguments: right(*arguments) + 1e-3)
    assert not suite.run(gpu_checks.correctness(), [])
    result = suite.document["items"]["correct mixed-4096 float16"]["result"]
    assert (result["public_is_the_same"], result["passed"]) == (False, False)


def test_a_race_decides_the_exit_code(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = gpu_bench.mixed_attention, [0]

    def moving(*arguments: Any) -> Tensor:
        calls[0] += 1
        return right(*arguments) * (1 + (calls[0] == 2) * 1e-2)

    race = [item for item in gpu_items.items(quick=True) if item.name == "race"]
    assert suite.run([], race)
    monkeypatch.setattr(gpu_bench, "mixed_attention", moving)
    assert not suite.run([], race)
    assert suite.document["items"]["race"]["result"]["differing"] == {"mixed-4096": 1, "merged-4096": 0}


def sanitizer(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int, seconds: int = 0) -> None:
    """Put a program of this name into the path that says what it was asked and ends with a code."""
    program = folder / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@"\nsleep {seconds}\ntouch "{folder}/ended"\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(("code", "state", "sound"), [(0, "passed", True), (9, "FAILED", False), (1, "measured", True)])
def test_what_the_sanitizer_finds_decides(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, state: str, sound: bool
) -> None:
    sanitizer(monkeypatch, tmp_path, code)
    items = [item for item in gpu_items.items(quick=True) if item.name == "sanitizer racecheck"]
    assert suite.run([], items) == sound
    outcome = suite.document["items"]["sanitizer racecheck"]
    assert outcome["state"] == state
    assert outcome["result"]["exit_code"] == code
    assert outcome["result"]["said"][0].startswith("--tool racecheck --error-exitcode 9 ")
    assert outcome["result"]["said"][0].endswith("gpu_checks.py")
    if code == 1:  # it could not run: that says nothing about the kernels
        assert outcome["result"]["error"] == "it ended with exit code 1"


def test_the_sanitizer_has_a_time_of_its_own(bench: FakeBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sanitizer(monkeypatch, tmp_path, 0, seconds=20)
    monkeypatch.setattr(gpu_checks, "_SANITIZER_SECONDS", 0.2)
    assert gpu_checks.sanitize("memcheck", bench)["error"] == "it was stopped after 1 s"
    assert not (tmp_path / "ended").exists()


def test_every_form_and_operation_runs_under_the_sanitizer(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[str, bool, bool]] = []
    cpu = torch.Generator()
    monkeypatch.setattr(torch, "device", lambda name: cpu.device)
    monkeypatch.setattr(torch, "Generator", lambda device: cpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu_checks, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(gpu_checks, "public", lambda call, inputs: launched.append((call.op, False, False)))
    monkeypatch.setattr(
        Call, "launched",
        lambda call, inputs, form: launched.append((call.op, form.descriptors, form.persistent > 0)),
    )  # fmt: skip
    gpu_checks.sanitized()
    assert {(op, False, False) for op in OPS} < set(launched)
    assert ("mixed_attention", True, False) in launched
    assert any(persistent for *_, persistent in launched)


@pytest.mark.parametrize("form", ["descriptors", "persistent"])
def test_forms_are_compared_with_float64(bench: FakeBench, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(gpu_checks, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(gpu_checks, "SDXL_CALLS", {"mixed-1024": MIXED})
    result = gpu_checks.right_in_form(form, bench)
    assert result["passed"] and result["relative_rms"] <= 1e-3
    assert result["configuration"]["descriptors" if form == "descriptors" else "persistent"]
    spoil(monkeypatch)
    assert not gpu_checks.right_in_form(form, bench)["passed"]
    monkeypatch.setattr(gpu_checks, "architecture_of", lambda device: "sm_89")
    assert "no candidate" in gpu_checks.right_in_form(form, bench)["error"]


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
    result = gpu_checks.check(wanted, torch.float16, bench)
    assert result["passed"], result


def test_true_tiles_meet_more_than_benign_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true calls
    for op in OPS:
        met = {(check.content, check.sliced) for check in gpu_checks.CORRECTNESS.values()
               if check.call.op == op and check.call.queries == 1024}  # fmt: skip
        assert met >= {("large", False), ("ties", False), ("means", False), ("normal", True)}


def test_without_the_sanitizer_that_is_recorded(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks.shutil, "which", lambda *_, **__: None)
    assert gpu_checks.sanitize("memcheck", bench) == {"error": "compute-sanitizer is not on this machine"}
