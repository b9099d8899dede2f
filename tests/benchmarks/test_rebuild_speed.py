from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import rebuild_speed

SECONDS = {"-c": 0.5, "--help": 0.25, "-o": 1.0}


def test_the_document_compares_with_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builds: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if command[0] == "git":
            return real(command, **options)
        builds.append(command)
        return SimpleNamespace(stdout='{"made": {}}')

    monkeypatch.setattr(rebuild_speed, "RESULTS", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(
        rebuild_speed, "seconds_of", lambda command: next(each for flag, each in SECONDS.items() if flag in command)
    )
    assert rebuild_speed.main(["--rounds", "3", "--machine", "words"]) == 0
    found = json.loads((tmp_path / "rebuild-speed.json").read_text())
    assert found["ratio"] == {"baseline": 1.0, "help": 0.5, "unchanged rebuild": 2.0}
    assert {"kind": "rebuild speed", "machine": "words", "rounds": 3}.items() <= found.items()
    assert len(builds) == 2
    assert "an unchanged rebuild 2.0 ×" in capsys.readouterr().out
