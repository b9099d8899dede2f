from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import fuzz_harness
import pytest
from fuzz_harness import AcceptedDamageError, Outcome, run_case
from fuzz_images import png
from fuzz_kinds import KINDS
from mutations import damaged, damaged_json

from infid_engines.errors import InputError
from infid_engines.memory import peak_memory, reset_peak_memory
from infid_export.faces.photos import load_photo

WORKER = Path(fuzz_harness.__file__).with_name("fuzz_worker.py")
Record = Callable[[str, object], None]


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_fails_and_no_damage_is_accepted(kind: str, tmp_path: Path) -> None:
    attempt = KINDS[kind].prepare(tmp_path)
    outcomes = [run_case(kind, attempt, seed) for seed in range(KINDS[kind].always)]
    assert [outcome for outcome in outcomes if outcome.result == "fault"] == []
    assert any(outcome.result == "rejected" for outcome in outcomes)


@pytest.mark.reliability
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_inputs(kind: str, tmp_path: Path, record_property: Record) -> None:
    started = time.monotonic()
    outcomes, crashes = _in_processes(kind, KINDS[kind].long, tmp_path / "outcomes.jsonl")
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    results = Counter(outcome.result for outcome in outcomes)
    figures = {
        "kind": kind, "seeds": [0, KINDS[kind].long - 1], "cases": len(outcomes) + len(crashes),
        "accepted": results["accepted"], "rejected": results["rejected"], "faults": results["fault"],
        "crashes": len(crashes), "seconds": time.monotonic() - started,
        "slowest": {"seed": slowest.seed, "seconds": slowest.seconds},
        "peak_bytes": max(outcome.peak_bytes for outcome in outcomes),
    }  # fmt: skip
    record_property("figures", json.dumps(figures))
    assert crashes == []
    assert [outcome for outcome in outcomes if outcome.result == "fault"] == []
    assert len(outcomes) == KINDS[kind].long


def _in_processes(kind: str, count: int, path: Path) -> tuple[list[Outcome], list[int]]:
    """Run all cases; when a case ends the process, a new one continues with the next case."""
    outcomes: list[Outcome] = []
    crashes: list[int] = []
    path.touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    while len(outcomes) + len(crashes) < count:
        first = len(outcomes) + len(crashes)
        before = len(outcomes)
        command = [sys.executable, str(WORKER), kind, str(first), str(count - first), str(path)]
        subprocess.run(command, env=environment, capture_output=True, check=False)
        lines = path.read_text().splitlines()
        outcomes = [Outcome(**json.loads(line)) for line in lines]
        if len(outcomes) + len(crashes) < count:
            crashes.append(first + len(outcomes) - before)
    return outcomes, crashes


def _wrong_type(_: Random) -> None:
    raise KeyError("steps")


def _accepts(_: Random) -> None:
    raise AcceptedDamageError("another manifest")


def _too_large(_: Random) -> None:
    bytearray(300_000_000)[::4096] = b"x" * 73_243  # touched, so that it is really allocated


def _too_long(_: Random) -> None:
    time.sleep(5)


def _without_advice(_: Random) -> None:
    raise InputError("It is wrong.", fix="")


@pytest.mark.parametrize("attempt", [_wrong_type, _accepts, _too_large, _too_long, _without_advice])
def test_the_harness_finds_faults(attempt: fuzz_harness.Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_harness, "MOST_BYTES", 200_000_000)
    monkeypatch.setattr(fuzz_harness, "MOST_SECONDS", 0.1)
    assert run_case("none", attempt, 0).result == "fault"


def test_a_case_is_made_again_from_its_seed() -> None:
    document = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    for seed in range(50):
        first, second = (damaged_json(Random(seed), document) for _ in range(2))
        assert json.dumps(first) == json.dumps(second)
        assert damaged(Random(seed), b"content") == damaged(Random(seed), b"content") != b"content"


@pytest.mark.parametrize(("depth", "colors", "channels"), [(8, 6, 4), (16, 0, 1), (8, 4, 2)])
def test_a_photo_takes_little_more_memory_than_its_pixels(depth: int, colors: int, channels: int) -> None:
    side = 3000
    content = png(side, side, depth, colors, b"\0" * (1 + side * channels * depth // 8), side)
    reset_peak_memory()
    before = peak_memory()
    assert load_photo(content).shape == (side, side, 3)
    assert (peak_memory() - before) / side**2 < 16  # bytes per pixel; 24 and 28 when converted at once
