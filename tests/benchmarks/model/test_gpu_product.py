"""The item that runs the product's own build, with a fake build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.model import product
from benchmarks.suite import child
from benchmarks.suite.bench import DEMO, Bench, Result

ROWS = [{"backend": "onnxruntime", "graph": "a"}, {"backend": "aotinductor", "graph": "a"}]


def outcome(monkeypatch: pytest.MonkeyPatch, code: int | None, rows: list[dict[str, str]] | None) -> Result:
    """Return the item's result for a build that ends with a code and writes rows; None is stopped, or writes none."""

    def run(command: list[str], seconds: float, environment: Any) -> child.Ended:
        folder = Path(command[command.index("-o") + 1])
        if rows is not None:
            place = folder.with_name("engines.failed-parity.json") if code else folder / "parity.json"
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps({"rows": rows}))
        return child.Ended(code, ["said"], 12.0)

    monkeypatch.setattr(child, "run", run)
    return product.packages(Bench(torch.device("cpu"), DEMO, False, lambda: 100.0, 1))


@pytest.mark.parametrize(("code", "passed"), [(0, True), (1, False)])
def test_the_build_decides(code: int, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(monkeypatch, code, ROWS)
    assert (found["passed"], found["rows"]) == (passed, ROWS[1:])


@pytest.mark.parametrize("rows", [None, ROWS[:1]], ids=["nothing written", "another backend"])
def test_a_build_that_compares_no_package_does_not_pass(
    rows: list[dict[str, str]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcome(monkeypatch, 1, rows)
    assert "passed" not in found
    assert found["error"] == "nothing was compared: exit code 1"


def test_a_build_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(monkeypatch, None, None)["error"] == "it was stopped after 12 s"
