from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_process import Cli

from infid_export.cli import tune
from infid_kernels import autotune, tuning
from infid_kernels.autotune import NoCandidateError, Trial, Tuned, select
from infid_kernels.measure import Timing


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A machine whose GPU finds every candidate but the first correct; returns (candidates, samples) of each level."""
    asked: list[tuple[int, int]] = []

    def fake(level: Any, device: Any, timer: Any, candidates: Any, progress: Any) -> Tuned:
        asked.append((len(candidates), timer.keywords["samples"]))
        progress(0.5, "half")
        trials = [Trial(candidate, 1e-4, Timing(0.4 + i, 0.4, 0.4, 50)) for i, candidate in enumerate(candidates)]
        trials[0] = Trial(candidates[0], float("nan"), None, "relative RMS error nan")
        return Tuned(level, trials, select(level, trials, "sm_90", "NVIDIA H100 80GB HBM3, triton 3.6.0"))

    monkeypatch.setattr(tune, "_gpu", lambda: torch.device("cuda"))
    monkeypatch.setattr(tuning, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(autotune, "tune", fake)
    return asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_is_one_message(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("tune", "-o", tmp_path / "tuning.json")
    assert (code, out) == (1, "")
    assert err.startswith("error: tune measures on an NVIDIA GPU, and torch finds none.\n  fix: Run it on the machine")
    assert list(tmp_path.iterdir()) == []


def test_the_fastest_are_written(cli: Cli, tmp_path: Path, gpu: list[tuple[int, int]]) -> None:
    file = tmp_path / "tuning.json"
    code, out, err = cli("tune", "-o", file)
    assert code == 0
    assert out.splitlines()[-1] == str(file)
    assert "measured on NVIDIA H100 80GB HBM3, triton 3.6.0: 1.400 ms median of 50, next best 2.400 ms" in out
    assert "left)" in err
    entries = tuning.read(file)
    second = [tuning.candidates(level.call.op, "sm_90")[1] for level in autotune.LEVELS]
    with tuning.loaded(file):
        fastest = [tuning.entry(level.call.op, "sm_90", 64, level.queries, level.even_n) for level in autotune.LEVELS]
    assert [each and each.configuration for each in fastest] == second
    assert second[0].descriptors  # written and read back with its form
    assert len(entries) == len(second) + 4  # for those who cannot make descriptors, the fastest without
    assert gpu == [(len(tuning.choices(level.call.op, "sm_90", 64)), 50) for level in autotune.LEVELS]


def test_quick_json_and_quiet(cli: Cli, tmp_path: Path, gpu: list[tuple[int, int]]) -> None:
    code, out, err = cli("tune", "-o", tmp_path / "tuning.json", "--quick", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert set(gpu) == {(13, 10), (6, 10)}  # mixed attention: six forms, five in Gluon, and two libraries
    level = json.loads(out)["levels"][0]
    assert level["level"] == "mixed attention, 4096 tokens"
    assert level["trials"][0]["error"] is None  # JSON has no NaN
    assert level["trials"][0]["rejection"] == "relative RMS error nan"


def test_nothing_right_writes_nothing(
    cli: Cli, tmp_path: Path, gpu: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise NoCandidateError("no candidate of mixed_attention is correct for x: 128 × 128: NaN")

    monkeypatch.setattr(autotune, "tune", fail)
    code, out, err = cli("tune", "-o", tmp_path / "tuning.json", "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith(
        "error: No candidate of mixed_attention is correct for x: 128 × 128: NaN.\n  fix: Nothing was"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_rejected_first(cli: Cli, tmp_path: Path, gpu: list[tuple[int, int]]) -> None:
    code, _, err = cli("tune", "-o", tmp_path / "nowhere" / "tuning.json")
    assert code == 1
    assert "does not exist" in err
    assert gpu == []


def test_a_gpu_that_is_too_old(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    code, _, err = cli("tune", "-o", tmp_path / "tuning.json")
    assert code == 1
    assert "Tesla V100 is too old: the kernels need a GPU of sm_80 or newer, this one is sm_70." in err
