"""Candidates in Triton's interpreter, and the table entries that follow from them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from suite_parts import TINY, FakeBench, spoil

from benchmarks.kernels import candidates, static_configurations
from benchmarks.suite import child
from benchmarks.suite.bench import DEMO, SDXL, Bench, Result
from benchmarks.suite.runner import Suite
from infid_kernels import tuning
from infid_kernels.autotune import LEVELS
from infid_kernels.tuning import Configuration, choices, read

WHOLE, ODD, MERGED = TINY.levels
TIMING = {"low": 0.3, "high": 0.5, "samples": 20}


def test_all_of_mixed_attention_at_whole_lengths_are_tried_and_few_of_the_rest() -> None:
    assert [candidates.in_full(level) for level in LEVELS] == [True, True, False, False, False, False]
    for level in LEVELS[:2]:
        forms = candidates.by_form(candidates.worth_trying(level, False, "sm_90"))
        names = {item.name for item in candidates.items(SDXL, False, "sm_90")}
        assert {f"candidates {level.name}: {form}" for form in forms} < names
        tried = [each for those in forms.values() for each in those]
        assert sorted(map(str, tried)) == sorted(map(str, choices(level.call.op, "sm_90", 64)))
    assert len(candidates.worth_trying(LEVELS[4], False, "sm_90")) < len(choices(LEVELS[4].call.op, "sm_90", 64))


def test_what_was_fastest_is_tried_at_the_odd_length(
    suite: Suite, bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses half of the table, since the interpreter is slow."""
    monkeypatch.setattr(candidates, "choices", lambda *arguments: choices(*arguments)[::2])
    (plain, *_, few, _, _) = candidates.items(TINY, False, "sm_89")
    assert (plain.name, few.name) == ("candidates whole: plain", "candidates odd: few")
    assert suite.run([plain])
    right = [trial for trial in bench.results[plain.name]["trials"] if trial["timing"]]
    assert 5 < len(right) < len(bench.results[plain.name]["trials"])  # blocks of 128 do not divide 64
    right[-1]["timing"]["median"] = 0.5
    assert suite.run([few])
    tried = [trial["configuration"] for trial in bench.results[few.name]["trials"]]
    assert tried == [trial["configuration"] for trial in [right[-1], *right[:4]]]
    assert all(trial["timing"]["samples"] == 50 for trial in bench.results[few.name]["trials"])
    entries = candidates.entries(TINY, bench.results, "sm_89", "L40S")
    assert [(entry.op, entry.even_n, entry.architecture) for entry in entries] == [
        ("mixed_attention", True, "sm_89"), ("mixed_attention", False, "sm_89"),
    ]  # fmt: skip
    assert entries[0].evidence == "measured on L40S: 0.500 ms median of 50, next best 1.000 ms"
    candidates.write_entries(tmp_path / "entries.json", entries)
    assert read(tmp_path / "entries.json") == tuple(entries)


def test_what_follows_runs_with_the_fastest(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds in this process, in a child, and after a restart."""
    monkeypatch.setattr(tuning, "_measured", [])
    hopper: Any = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    call = ("mixed_attention", hopper, 64, 64, (64, 64))
    trials = [
        {"configuration": choice.to_dict(), "error": 1e-4, "timing": {**TIMING, "median": median}, "rejection": ""}
        for choice, median in ((Configuration(64, 32, 4, 2), 0.4), (Configuration(32, 32, 4, 2), 0.3))
    ]
    bench.workload, level = DEMO, DEMO.levels[0].name  # a child knows no other workloads
    bench.results = {f"candidates {level}: plain": {"level": level, "trials": trials}}
    candidates.adopt_again(bench)  # nothing was adopted yet
    assert tuning.choose(*call)[0] != Configuration(32, 32, 4, 2)
    bench.results[candidates.ADOPTED] = candidates.adopt(bench)
    assert tuning.choose(*call) == (Configuration(32, 32, 4, 2), True)
    assert bench.results[candidates.ADOPTED]["entries"][0]["configuration"]["block_m"] == 32
    paths = (str(Path(__file__).parent), *sys.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(entry or ".").resolve()) for entry in paths))
    found = child.measure_in_child("test_gpu_candidates:measured_in_child", bench, 60.0)
    assert found["configurations"] == [Configuration(32, 32, 4, 2).to_dict()]
    monkeypatch.setattr(tuning, "_measured", [])  # simulates a restart
    candidates.adopt_again(bench)
    assert tuning.choose(*call) == (Configuration(32, 32, 4, 2), True)


def measured_in_child(bench: Bench) -> Result:
    """Return the measured configurations that a child process prefers to its table."""
    return {"configurations": [entry.configuration.to_dict() for entry in tuning._measured]}


def test_a_candidate_that_is_wrong_makes_no_entry(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    suite.bench.quick = True
    (few,) = (item for item in candidates.items(TINY, True, "sm_89") if item.name == "candidates odd: few")
    assert suite.run([few])
    trials = suite.bench.results[few.name]["trials"]
    assert len(trials) == 3
    assert all(trial["timing"] is None for trial in trials)
    assert candidates.entries(TINY, suite.bench.results, "sm_89", "L40S") == []


def test_at_the_odd_length_some_are_plain_and_none_needs_full_blocks(
    bench: FakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, tried = LEVELS[2], list[tuning.Choice]()
    fastest = [
        *tuning.GLUON_CANDIDATES[64], *(each for each in tuning.candidates(odd.call.op, "sm_90") if each.descriptors),
        *tuning.CANDIDATES,
    ]  # fmt: skip
    trials = [
        {"configuration": each.to_dict(), "error": 1e-4, "timing": {**TIMING, "median": float(place)}, "rejection": ""}
        for place, each in enumerate(fastest)
    ]
    bench.workload, level = SDXL, LEVELS[0].name
    bench.results = {"candidates": {"level": level, "trials": trials}}
    monkeypatch.setattr(candidates, "_measured", lambda level, these, bench: tried.extend(these))
    candidates.few(odd, bench)
    assert [candidates.form_of(each) for each in tried] == [*5 * ["descriptors"], *2 * ["plain"]]


def test_the_table_has_what_was_measured() -> None:
    shipped, measured = tuning.table(), static_configurations.measured()
    assert measured and set(measured) < set(shipped)
    timed = {entry for entry in shipped if entry.evidence.startswith("measured")}
    assert timed == set(measured)


def test_every_case_of_the_table_has_a_plain_entry() -> None:
    for each in tuning.table():
        assert tuning.entry(each.op, each.architecture, each.block_d, 0, each.even_n, only="plain")
