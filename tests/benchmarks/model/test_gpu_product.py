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


class OnGpu(Bench):
    @property
    def on_gpu(self) -> bool:
        return True


def outcome(
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    rows: list[dict[str, str]] | None,
    kind: type[Bench] = Bench,
    measured: int = 0,
) -> Result:
    """Return the item's result for a build that ends with a code and writes rows; None is stopped, or writes none.

    On a GPU, `bench` follows, which ends with the code `measured`.
    """

    def run(command: list[str], seconds: float, environment: Any) -> child.Ended:
        folder = Path(command[command.index("-o") + 1])
        if "bench" in command:
            assert seconds == product._LIMIT - 12.0
            folder.mkdir()
            (folder / "bench.json").write_text(json.dumps(dict.fromkeys((*product._MEASURED, "machine"), 1)))
            return child.Ended(measured, ["crashed"], 5.0)
        assert ("--fp16" in command) == (kind is OnGpu)
        if rows is not None:
            place = folder.with_name("engines.failed-parity.json") if code else folder / "parity.json"
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps({"rows": rows}))
        return child.Ended(code, ["said"], 12.0)

    monkeypatch.setattr(child, "run", run)
    return product.packages(kind(torch.device("cpu"), DEMO, False, lambda: 1000.0, 1))


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


def test_on_a_gpu_images_are_made_with_packages_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(monkeypatch, 0, ROWS, OnGpu)
    assert found["passed"]
    assert found.items() >= dict.fromkeys(product._MEASURED, 1).items()
    assert "graphs" not in outcome(monkeypatch, 1, ROWS, OnGpu)


def test_a_crash_while_making_images_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome(monkeypatch, 0, ROWS, OnGpu, measured=-11)
    assert (found["passed"], found["error"], found["output"]) == (False, "bench: exit code -11", ["crashed"])
