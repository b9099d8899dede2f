"""The suite's command: its plan, what it rejects, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from suite_parts import MERGED, MIXED, FakeBench, spoil, timed

from benchmarks import gpu_suite
from benchmarks.kernels import baselines, checks
from benchmarks.kernels.baselines import BASELINES
from benchmarks.model import compiled
from benchmarks.suite import item_list, machine, report
from benchmarks.suite.bench import DEMO, SDXL, Item
from benchmarks.suite.runner import SLACK
from infid_kernels.tuning import read

# In order of value, per command: the beginning of each item's name.
FIRST = (
    "clocks", "compile float16", "correct ", "ceilings", "speed ", "candidates mixed attention, 4096",
    "candidates mixed attention, 1024", "candidates mixed attention, 3952", "mean-shift ", "step ",
    "denoise_step triton graph", "image ", "denoise_step compiled", "identity_step AOTInductor", "compiled baselines ",
    "bundle ", "race",
)  # fmt: skip
SECOND = ("compile bfloat16", "correct ", "speed ", "sanitizer memcheck", "sanitizer racecheck")


@pytest.mark.parametrize(("phase", "seconds", "order"), [(1, 590, FIRST), (2, 200, SECOND)], ids=["first", "second"])
def test_the_plan_fits_its_command_in_order_of_worth(phase: int, seconds: float, order: Sequence[str]) -> None:
    planned = [item for item in item_list.items(SDXL, quick=False) if item.phase == phase]
    part = {1: "first", 2: "second"}[phase]
    assert report.LIMITS[part] <= seconds
    spare = gpu_suite._IMPORTS + SLACK
    # even if the steps that compile together need all the time that they may have
    late = compiled.LIMIT - compiled.EXPECTED if phase == 1 else 0.0
    assert sum(item.seconds for item in planned) + late <= report.LIMITS[part] - spare
    names = [item.name for item in planned]
    assert len(set(names)) == len(names)
    firsts = [next((place for place, name in enumerate(names) if name.startswith(start)), None) for start in order]
    found = [place for place in firsts if place is not None]
    assert found == sorted(found)
    assert names[-1].startswith(order[-1])


def test_the_demo_model_has_the_same_sections() -> None:
    def sections(workload: Any) -> list[str]:
        starts = [item.name.split(" ")[0] for item in item_list.items(workload, quick=False)]
        return [start for place, start in enumerate(starts) if place == 0 or starts[place - 1] != start]

    assert sections(DEMO) == sections(SDXL)


def test_a_dry_run_prints_the_plan_of_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    for item in item_list.items(SDXL, quick=False):
        assert f"  {item.name}\n" in printed
    for phase in (1, 2):
        total = sum(item.seconds for item in item_list.items(SDXL, quick=False) if item.phase == phase)
        assert f"{total:.0f} s in total" in printed
    assert "mixed-4096     171.80   62.9  173.6, 173.6, 474.5, 1039.9" in printed
    assert all(baseline.name in printed for baseline in BASELINES)
    assert "denoise_step: goal ≤ 48 ms, floor 36.1" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(("interpret", "words"), [(False, "torch finds none"), (True, "add --model demo")])
def test_without_a_gpu_it_is_one_sentence(
    interpret: bool, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_suite.triton.knobs.runtime, "interpret", interpret)
    assert gpu_suite.main(["--output", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert list(tmp_path.iterdir()) == []


def pretend(monkeypatch: pytest.MonkeyPatch, uuid: str = "GPU-1", **changed: str) -> None:
    """Make the suite find an H100 on this machine, with the demo model's calls."""
    gpu = {"name": "NVIDIA H100 80GB HBM3", "uuid": uuid, "sms": 132, "driver_version": "580"}
    facts = {"torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0", "commit": "1234", "changed_files": "",
             "sources": "abcd", "date": "2026-11-23T16:00:00+00:00"}  # fmt: skip
    monkeypatch.setattr(machine, "describe", lambda device, commit: {"gpu": gpu, **facts, **changed})
    monkeypatch.setattr(gpu_suite, "find_device", lambda model: torch.device("cpu"))
    monkeypatch.setattr(gpu_suite, "Bench", FakeBench)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_the_whole_run(
    right: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not right:
        spoil(monkeypatch)
    pretend(monkeypatch)
    kept = [each for each in BASELINES if each.name in ("two attentions, eager", "two flash by log-sum-exp")]
    monkeypatch.setattr(baselines, "BASELINES", kept)
    arguments = [
        "--model",
        "demo",
        "--part",
        "first",
        "--output",
        str(tmp_path),
        "--only",
        "speed",
        "candidates merged",
    ]
    code = gpu_suite.main([*arguments, "--limit-s", "10000"])
    printed = capsys.readouterr().out
    name = "gpu-nvidia-h100-80gb-hbm3-20261123T160000.json"
    document = json.loads((tmp_path / name).read_text())
    assert code == (0 if right else 1)
    assert printed.splitlines()[-2:] == [str(tmp_path / name), str(tmp_path / f"configurations-{name}")]
    assert len(list(tmp_path.iterdir())) == 2
    (entry,) = read(tmp_path / f"configurations-{name}")
    assert (entry.op, entry.evidence[:35]) == (MERGED.op, "measured on NVIDIA H100 80GB HBM3, ")
    assert document["items"]["speed merged-4096 float16"]["result"]["best_baseline"] == "two attentions, eager"
    assert not any(item.startswith(("bundle", "race", "correct mixed-4096 bf")) for item in document["items"])
    assert document["commands"][0]["part"] == "first"
    if right:
        assert "two flash by log-sum-exp: NotImplementedError" in printed
    else:
        assert (
            "mixed-4096 float16       skipped: mixed_attention with head size 64 is not known to be correct" in printed
        )
        assert "FAILED: correct mixed-4096 float16" in printed


def test_an_unknown_item_is_rejected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch)
    assert gpu_suite.main(["--model", "demo", "--only", "sped", "--output", str(tmp_path)]) == 1
    assert "no item of the all part begins with 'sped'" in capsys.readouterr().err


def plan_of(monkeypatch: pytest.MonkeyPatch, items: list[Item]) -> None:
    monkeypatch.setattr(item_list, "items", lambda workload, quick, architecture="sm_90": items)


def test_the_second_command_goes_on_with_what_was_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = Item("correct", 1.0, lambda bench: {"passed": False}, MIXED.op, check=True)
    later = [timed("late", phase=2), timed("of a failed one", MIXED.op, phase=2)]
    items = [check, timed("a"), timed("long", seconds=50.0), *later]
    plan_of(monkeypatch, items)
    pretend(monkeypatch)
    command = ["--model", "demo", "--output", str(tmp_path / "first"), "--part", "first", "--limit-s", "40"]
    assert gpu_suite.main(command) == 1
    (path,) = (tmp_path / "first").iterdir()
    assert list(json.loads(path.read_text())["items"]) == ["correct", "a", "long"]
    items[1] = Item("a", 1.0, lambda bench: {"median": 2.0})  # running it again would be noticed
    command = ["--model", "demo", "--resume", str(path), "--output", str(tmp_path / "second"), "--limit-s", "400"]
    assert gpu_suite.main(command) == 1  # the first command's failure is kept
    document = json.loads((tmp_path / "second" / path.name).read_text())
    assert {name: item["state"] for name, item in document["items"].items()} == {
        "correct": "FAILED", "a": "measured", "long": "measured", "late": "measured", "of a failed one": "skipped",
    }  # fmt: skip
    assert document["items"]["a"]["result"] == {"median": 1.0}
    assert [command["part"] for command in document["commands"]] == ["first", "second"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"uuid": "GPU-2"}, "measured on NVIDIA H100 80GB HBM3 (GPU-1), and this is NVIDIA H100 80GB HBM3 (GPU-2)"),
        ({"commit": "5678"}, "another commit: 1234, here 5678"),
        ({"torch": "2.14.1"}, "another torch: 2.11.0, here 2.14.1"),
        ({"sources": "efgh"}, "another source code"),
    ],
    ids=["card", "commit", "version", "source"],
)
def test_results_are_resumed_only_where_they_belong(
    changed: dict[str, str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    plan_of(monkeypatch, [timed("a")])
    pretend(monkeypatch)
    assert gpu_suite.main(["--model", "demo", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    before = path.read_text()
    capsys.readouterr()
    pretend(monkeypatch, **changed)
    assert gpu_suite.main(["--model", "demo", "--resume", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error and "Start without --resume." in error
    assert path.read_text() == before


def test_a_restart_goes_on_in_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Replaced(BaseException):
        """Stands for replacing this process."""

    executed: list[list[str]] = []

    def execute(program: str, arguments: list[str]) -> None:
        executed.append(arguments)
        raise Replaced

    def lost(bench: FakeBench) -> None:
        raise RuntimeError("CUDA error")

    plan_of(monkeypatch, [timed("a"), timed("b")])
    pretend(monkeypatch)
    monkeypatch.setattr(gpu_suite.os, "execv", execute)
    monkeypatch.setattr(FakeBench, "synchronize", lost)
    given = ["--model", "demo", "--output", str(tmp_path), "--part", "first", "--limit-s", "300"]
    with pytest.raises(Replaced):
        gpu_suite.main(given)
    (arguments,) = executed
    (path,) = tmp_path.iterdir()
    assert arguments[2 : 2 + len(given)] == given
    options = gpu_suite.arguments_of(arguments[2:])
    assert (options.resume, options.part) == (path, "first")
    assert 200 < options.limit_s < 300
    monkeypatch.undo()
    plan_of(monkeypatch, [timed("a"), timed("b")])
    pretend(monkeypatch)
    assert gpu_suite.main(arguments[2:]) == 0
    document = json.loads(path.read_text())
    assert list(document["items"]) == ["a", "b"]
    assert [each["item"] for each in document["restarts"]] == ["a"]


def test_the_commit_is_recorded_where_there_is_no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert machine.describe(cpu, "1234")["commit"] == "1234"
    monkeypatch.setattr(machine, "_git", lambda *arguments: None)
    facts = machine.describe(cpu, None)
    assert (facts["commit"], facts["changed_files"]) == ("unknown", None)
    assert len(facts["sources"]) == 64


def test_the_source_is_known_by_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "benchmarks" / "results")
    for name in ("kernels/a.py", "benchmarks/results/gpu.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = machine.sources()
    (tmp_path / "benchmarks/results/gpu.json").write_text("2")
    assert machine.sources() == before
    (tmp_path / "kernels/a.py").write_text("2")
    assert machine.sources() != before


def test_checks_come_before_what_they_are_about() -> None:
    names = [item.name for item in item_list.items(SDXL, quick=False)]
    for kind in ("float16", "bfloat16"):
        last = max(names.index(item.name) for item in checks.correctness(SDXL, kind, 1))
        assert last < min(place for place, name in enumerate(names) if name.startswith("speed") and name.endswith(kind))
