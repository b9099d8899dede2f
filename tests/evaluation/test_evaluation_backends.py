from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluation_parts import COLORS, TableGenerator, plain, two_people

from benchmarks.quality import backend_scores as script

GOOD = {"1 0 0": plain(3, 0, 4), "0 3 4": plain(0, 1, 1)}
WORSE = {**GOOD, "1 0 0": plain(3, 1, 4)}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the script on images of plain colors; the fp16 engines return the given ones."""

    def run(fp16: dict) -> tuple[int, dict]:
        monkeypatch.setattr(script, "RESULTS", tmp_path)
        monkeypatch.setattr(script, "build", lambda options, reporter: None)
        monkeypatch.setattr(script, "open_set", lambda references, prompts: two_people())
        monkeypatch.setattr(script, "open_scorers", lambda: COLORS)
        monkeypatch.setattr(script, "open_reference", lambda model, choices: TableGenerator(GOOD))
        monkeypatch.setattr(script, "Pipeline", SimpleNamespace(load=lambda folder, backend: nullcontext(folder.name)))
        monkeypatch.setattr(script, "EngineGenerator", lambda name: TableGenerator({"fp32": GOOD, "fp16": fp16}[name]))
        code = script.main(["--work", str(tmp_path / "work"), "--machine", "a table"])
        return code, json.loads((tmp_path / "backends.json").read_text())

    return run


def test_backends_that_keep_every_score_pass(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run(GOOD)
    assert code == 0
    assert list(document["backends"]) == [script.REFERENCE, *script.ENGINES]
    assert all(document["backends"][name]["gate"]["passed"] for name in script.ENGINES)
    printed = capsys.readouterr().out
    assert script.markdown(document) in printed
    assert printed.count("+0.00%") == 6
    assert "2 people × 2 prompts" in printed


def test_a_backend_that_loses_a_score_fails(run: Any) -> None:
    code, document = run(WORSE)
    assert code == 1
    assert [document["backends"][name]["gate"]["passed"] for name in script.ENGINES] == [True, False]
    last = script.markdown(document).splitlines()[4]
    assert last.startswith("| ONNX Runtime fp16 |") and last.endswith("| FAILED |")
