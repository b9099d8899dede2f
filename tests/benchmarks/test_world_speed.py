from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import world_speed


def test_the_document_says_what_was_drawn_how_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(world_speed, "RESULTS", tmp_path)
    assert world_speed.main(["--pictures", "20", "--size", "64", "--machine", "words"]) == 0
    found = json.loads((tmp_path / "world-speed.json").read_text())
    assert {"kind": "world speed", "machine": "words", "pictures": 20, "size": 64}.items() <= found.items()
    assert found["pictures_per_second"] == 20 / found["seconds"]
    assert f"{found['pictures_per_second']:.0f} images of 64 × 64 per second" in capsys.readouterr().out
