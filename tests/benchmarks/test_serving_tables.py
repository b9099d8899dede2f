"""The tables of docs/serving.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.serving import tables

MEASURED = {"machine": "2 cores", "commit": "0123456789"}
LEVEL = {"p50_ms": 200.0, "p95_ms": 1250.0, "p99_ms": 1300.0, "images_per_second": 5.5, "statuses": {"200": 64}}
FACTS = {"resident_mb": 600.4, "descriptors": 18, "threads": 17}


def times(milliseconds: float) -> dict[str, float]:
    return {"median_ms": milliseconds, "p20_ms": milliseconds - 1, "p80_ms": milliseconds + 1}


def soak(**changes: Any) -> dict[str, Any]:
    return {
        **MEASURED, "customers": 8, "seconds": 3600.0, "requests": 12_345, "hung_up": 12, "images": 10_000,
        "statuses": {"200": 12_000, "499": 45}, "lost": [], "server_errors": 0, "metrics_differ": [], "at_start": FACTS,
        "at_end": {**FACTS, "resident_mb": 620.0}, "resident_mb_per_hour": 1.23, "stop_seconds": 0.4, "faults": 0,
        **changes,
    }  # fmt: skip


def hostile(**changes: Any) -> dict[str, Any]:
    server = {"requests": {"ids": 10}, "statuses": {"ids": {"404": 9, "closed": 1}}, "files_compared": 12,
              "resident_mb": {"start": 600.0, "most": 650.0, "end": 640.0}}  # fmt: skip
    return {**MEASURED, "requests": 20, "faults": 0, "servers": {"with tokens": server, "without": server}, **changes}


def test_load() -> None:
    levels = [{"concurrency": 1, **LEVEL, "rejected_with_429": 0},
              {"concurrency": 64, "images_per_second": 0.0, "statuses": {"503": 4},
               "rejected_with_429": 3}]  # fmt: skip
    drawn = tables.load_table({**MEASURED, "levels": levels, "images": 64, "steps": 5}).splitlines()
    assert "| 1 | 0.20 s | 1.25 s | 1.30 s | 5.50 | 64 × 200 | 0 |" in drawn
    assert "| 64 | – | – | – | 0.00 | 4 × 503 | 3 |" in drawn
    assert drawn[-1] == "64 images of 5 steps each. Measured on 2 cores, at commit 0123456."


def test_overhead() -> None:
    document = {**MEASURED, "rounds": 20, "steps": 30, "same_image": True, "added_share": 0.0033,
                "request": times(1000), "generate": times(990), "round": times(991), "png": times(4),
                "added": times(3.5)}  # fmt: skip
    drawn = tables.overhead_table(document).splitlines()
    assert "| of a request: HTTP and the queue | 3.50 ms | 2.50 ms | 4.50 ms |" in drawn
    assert "the same over HTTP" in drawn[-1] and "add 0.33% of an image." in drawn[-1]
    assert "NOT the same" in tables.overhead_table({**document, "same_image": False})


def test_batching() -> None:
    folder = {"batch": 4, "images_per_second": {"plain": 0.3, "template": 0.5, "same prompt": 0.4}, "goal": 1.6,
              "ratio": {"template": 1.71, "same prompt": 1.4}, "met": True}  # fmt: skip
    drawn = tables.batching_table(
        {**MEASURED, "folders": [folder], "customers": 8, "steps": 30, "rounds": 5}
    ).splitlines()
    assert "| 4 | different seeds | 0.30 | 1 | – |" in drawn
    assert "| 4 | one template | 0.50 | 1.71 | met |" in drawn
    assert "| 4 | same prompt and seed, no template made | 0.40 | 1.40 | missed |" in drawn


def test_soak() -> None:
    drawn = tables.soak_table(soak()).splitlines()
    assert "| requests | 12,345, of which 12 hung up |" in drawn
    assert "| answers by status | 12,000 × 200, 45 × 499 |" in drawn
    assert "| seconds to stop, with nothing left to do | 0.4 |" in drawn
    assert "| its slope in the last 75 % of the time | +1.2 MB per hour |" in drawn
    assert drawn[-1] == "8 customers for 60 minutes, PASSED. Measured on 2 cores, at commit 0123456."
    assert "FAILED (2 faults)" in tables.soak_table(soak(faults=2))


def test_hostile() -> None:
    drawn = tables.hostile_table(hostile()).splitlines()
    assert "| ids | 20 | 18 × 404, 2 × closed |" in drawn
    assert "PASSED; 24 files and folders" in drawn[-1] and "600 to 640 MB, 600 to 640 MB" in drawn[-1]
    assert "FAILED (1 faults)" in tables.hostile_table(hostile(faults=1))


def test_only_documents_that_are_there_are_drawn(tmp_path: Path) -> None:
    assert tables.drawn(tmp_path) == {}
    (tmp_path / "serving-soak.json").write_text(json.dumps(soak()))
    (tmp_path / "serving-hostile.json").write_text(json.dumps(hostile()))
    assert tables.drawn(tmp_path) == {
        "serving-soak": tables.soak_table(soak()), "serving-hostile": tables.hostile_table(hostile())
    }  # fmt: skip
