"""The tables of benchmarks/README.md, and its sentences about the run behind them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernels import roofline
from benchmarks.suite import goals, results_page
from benchmarks.suite.results_page import goal_table, run_table, step_table


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(json.loads((roofline.RESULTS / "gpu-nvidia-h200.json").read_text()))


def row(table: str, name: str) -> list[str]:
    (found,) = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_the_page_is_drawn_from_the_newest_results() -> None:
    assert results_page.drawn() == results_page.PAGE.read_text(), "run `python benchmarks/suite/results_page.py`"


def test_another_result_draws_another_page(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document["items"]["text_step torch graph"]["result"]["median"] *= 2
    (tmp_path / "gpu-other.json").write_text(json.dumps(document))
    monkeypatch.setattr(roofline, "RESULTS", tmp_path)
    assert results_page.drawn() != results_page.PAGE.read_text()


def test_a_step_has_its_rate_and_its_share_of_the_product_of_the_same_run(document: dict[str, Any]) -> None:
    document["items"]["ceilings"]["result"]["flops_per_second"] = 500e12
    document["items"]["text_step torch graph"]["result"].update(median=40.0, teraflop=10.0)
    document["items"]["diffusers pipeline step compiled"]["result"]["median"] = 25.0
    for name in ("text_step compiled graph", "diffusers pipeline step eager"):
        document["items"][name] = {"state": "error", "why": "it was lost"}
    table = step_table(document)
    assert row(table, "`text_step torch graph`") == ["40.0", "250", "50%"]
    assert row(table, "`diffusers pipeline step compiled`") == ["25.0", "400", "80%"]  # the work of a plain step
    assert row(table, "`text_step compiled graph`") == ["error: it was lost", "–", "–"]
    assert row(table, "`image 4 joint`")[1:] == ["–", "–"]
    assert "step torch against triton" not in table


def test_a_failed_step_has_no_time(document: dict[str, Any]) -> None:
    document["items"]["text_step compiled graph"]["state"] = "FAILED"
    assert row(step_table(document), "`text_step compiled graph`") == ["FAILED", "–", "–"]


def test_the_goals_have_the_verdicts_that_the_command_prints(document: dict[str, Any]) -> None:
    document["items"]["denoise_step triton graph"]["result"]["median"] = 60.0
    document["items"]["identity_step triton graph"]["result"]["median"] = 20.0
    del document["items"]["image 4 joint"]
    table = goal_table(document)
    assert len(table.splitlines()) == 2 + len(goals.GOALS)
    assert row(table, "denoise_step") == [
        "≤ 48 ms", "36.13", "60 ms", "`denoise_step triton graph`", "missed by 25.0%"
    ]  # fmt: skip
    assert row(table, "identity_step from a template")[-1] == "met"
    assert row(table, "4-step image without guidance, joint")[2:] == ["–", "–", "not measured"]


def test_the_run_has_the_seconds_of_both_commands(document: dict[str, Any]) -> None:
    assert row(run_table(document), "items of the second command") == ["36 s of 70 s"]
    document["items"]["sanitizer memcheck"]["seconds"] += 20
    document["commands"][1]["seconds"] = 180
    table = run_table(document)
    assert row(table, "items of the second command") == ["56 s of 180 s"]
    assert row(table, "items of the first command") == ["375 s of 550 s"]
    assert "items of the all command" not in table


def test_the_sentences_agree_with_the_results(document: dict[str, Any]) -> None:
    assert roofline.newest() == document
    text = " ".join(results_page.PAGE.read_text().split())
    ceilings, clocks = (document["items"][name]["result"] for name in ("ceilings", "clocks"))
    rate = ceilings["flops_per_second"] / 1e12
    limit, clock = float(clocks["power.limit"].split()[0]), clocks["clocks.sm"]
    assert f"reached {rate:.1f} TFLOP/s: at its limit of {limit:.0f} W the clock went down to {clock}." in text
    assumed = goals.MATRIX_TERAFLOPS
    assert f"assume {assumed:.0f} TFLOP/s. With {rate:.1f} they would be {assumed / rate:.2f} times as long." in text
    compiled, graph = (document["items"][f"text_step {how} graph"]["result"]["median"] for how in ("compiled", "torch"))
    assert f"{compiled:.1f} ms against {graph:.1f} ms" in text
    assert "nothing here has been run" not in text.lower()
