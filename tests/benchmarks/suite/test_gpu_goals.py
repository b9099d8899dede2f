"""The goals: their floors computed by hand, and what is printed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.kernels.speeds import ALONE, OURS
from benchmarks.suite import goals, report
from benchmarks.suite.goals import GOALS, verdicts


def test_the_floors_of_the_issue() -> None:
    assert goals.step_floor(2, 2) == pytest.approx(36.1, abs=0.05)
    assert goals.step_floor(0, 2) == pytest.approx(19.0, abs=0.05)
    # mixed attention's second half, by hand: 4·64 operations per logit
    assert pytest.approx((10 * 10 * 4096 * 4096 + 60 * 20 * 1024 * 1024) * 256e-12) == goals.MIXED_ROW


def test_no_goal_is_beyond_its_floor() -> None:
    for goal in GOALS:
        if goal.floor is not None:
            assert goal.wanted < goal.floor if goal.more else goal.floor < goal.wanted, goal.what


def contenders(ours: float, teraflops: float, right: bool = True, **baselines: float) -> dict[str, Any]:
    rows = {OURS: {"median": ours, "teraflops": teraflops, "right": right, "complete": True}}
    rows |= {name: {"median": time, "right": True, "complete": True} for name, time in baselines.items()}
    return rows | {ALONE: {"median": ours * 0.9, "complete": False}}


def line(results: dict[str, Any], what: str) -> str:
    (found,) = (line for line in verdicts(results) if f" {what}: " in line)
    return found


def test_the_best_baseline_counts_even_if_it_was_compiled_later() -> None:
    results = {"speed mixed-4096 float16": {"contenders": contenders(1.0, 481.0, cudnn=1.3)}}
    assert line(results, "mixed attention 4096 × 8192").startswith("met  ")
    what = "mixed attention 4096 × 8192 over the best baseline"
    assert line(results, what) == f"met           {what}: 1.3 × (cudnn), goal ≥ 1.15 ×"
    compiled = {"flex": {"median": 1.1, "right": True, "complete": True}, "odd": {"error": "no"}}
    results["compiled baselines mixed_attention"] = {"calls": {"mixed-4096": {"contenders": compiled}}}
    assert line(results, what) == f"missed by 4.3% {what}: 1.1 × (flex), goal ≥ 1.15 ×"


def test_ours_is_the_faster_of_the_tables_choice_and_the_tuned_one() -> None:
    results = {"speed mixed-4096 float16": {"contenders": contenders(1.0, 450.0, cudnn=1.1)}}
    what = "mixed attention 4096 × 8192"
    assert line(results, what).startswith(f"missed by 6.2% {what}: 450 TFLOP/s (speed mixed-4096 float16)")
    results["tuned mixed-4096 float16"] = {"contenders": contenders(0.9, 500.0)}
    assert line(results, what).startswith(f"met           {what}: 500 TFLOP/s (tuned mixed-4096 float16)")
    assert "1.222 × (cudnn)" in line(results, f"{what} over the best baseline")
    results["tuned mixed-4096 float16"]["contenders"] = contenders(0.9, 500.0, right=False)
    assert "450 TFLOP/s (speed mixed-4096 float16)" in line(results, what)


def test_the_best_variant_counts_and_is_named() -> None:
    results: dict[str, Any] = {"denoise_step triton graph": {"median": 49.0}}
    assert line(results, "denoise_step").startswith("missed by 2.1% denoise_step: 49 ms (denoise_step triton graph)")
    results["denoise_step compiled graph"] = {"contenders": {"a": {"median": 44.0}, "b": {"error": "no"}}}
    found = line(results, "denoise_step")
    assert found.startswith(
        "met           denoise_step: 44 ms (denoise_step compiled graph), goal ≤ 48 ms, floor 36.13"
    )


def test_the_price_compares_what_was_made_in_the_same_way() -> None:
    results = {
        "identity_step triton graph": {"median": 24.0}, "identity_step compiled graph": {"median": 20.0},
        "text_step torch graph": {"median": 20.0},
    }  # fmt: skip
    what = "price of an identity from a template"
    assert line(results, what).startswith(
        f"met           {what}: 1.2 × a plain SDXL step (identity_step triton graph /"
    )
    results["text_step compiled graph"] = {"median": 18.0}
    assert line(results, what).startswith(f"met           {what}: 1.111 ")


def test_what_failed_meets_no_goal() -> None:
    items = {
        "image 30 joint": {"state": "FAILED", "result": {"median": 1.0, "passed": False}},
        "image 30 template": {"state": "passed", "result": {"median": 890.0, "passed": True}},
        "image 4 joint": {"state": "skipped", "why": "no time"},
    }
    results = report.results({"items": items})
    assert line(results, "30-step image, joint").startswith("not measured")
    assert line(results, "30-step image from a template").startswith("met")
    assert line(results, "4-step image without guidance, joint").startswith("not measured")


def test_what_limits_mixed_attention_is_printed_beside_it() -> None:
    result = {
        "contenders": contenders(0.1, 300.0), "configuration": {"block_m": 128}, "resources": {"tiles_at_once": 2},
    }  # fmt: skip
    card = {"name": "NVIDIA H200", "sms": 132}
    assert list(goals.limits({"speed mixed-1024 float16": result}, card)) == [
        "mixed-1024: 320 tiles, 2 at once on an SM: 2 waves, 61% filled",
        "mixed-1024: the attention kernel alone takes 90.0 µs; at least: products 21.7 µs, memory 6.6 µs, "
        "exponentials 21.7 µs",
    ]
