"""Draws the tables of benchmarks/README.md from the newest results of `gpu_suite.py`.

Usage::

    PYTHONPATH=.:kernels:engines python benchmarks/suite/results_page.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kernels import roofline
from benchmarks.model import steps
from benchmarks.page_tables import markdown, with_tables
from benchmarks.provenance import ROOT
from benchmarks.suite import goals, item_list, report
from benchmarks.suite.bench import SDXL

PAGE = ROOT / "benchmarks" / "README.md"
Document = Mapping[str, Any]


def run_table(document: Document) -> str:
    """Return what the results depend on: card, versions, commit, and the card's ceilings and clocks in this run."""
    gpu, items = document["gpu"], document["items"]
    ceilings, clocks = (items[name]["result"] for name in ("ceilings", "clocks"))
    rows = [
        ("card", f"{gpu['name']}, driver {gpu['driver_version']}"),
        ("versions", f"torch {document['torch']}, triton {document['triton']}, Python {document['python']}"),
        ("commit", f"`{document['commit'][:7]}`"),
        (f"product of {SDXL.matrix}³ in fp16", f"{ceilings['flops_per_second'] / 1e12:.1f} TFLOP/s"),
        ("copy of 1 GiB", f"{ceilings['bytes_per_second'] / 1e12:.2f} TB/s"),
        ("clock during products", f"{clocks['clocks.sm']}, at most {clocks['clocks.max.sm']}"),
        ("power during products", f"{clocks['power.draw']}, at most {clocks['power.limit']}"),
    ]
    for part, phases in report.PHASES.items():
        given = [command["seconds"] for command in document["commands"] if command["part"] == part]
        if given:
            taken = (items[item.name]["seconds"] for item in item_list.items(SDXL, document["quick"])
                     if item.name in items and item.phase in phases)  # fmt: skip
            rows.append((f"items of the {part} command", f"{sum(taken):.0f} s of {sum(given)} s"))
    return markdown(("what", "of this run"), rows)


def step_table(document: Document) -> str:
    """Return the time of every item of the full-size model, and its rate where its operations are counted."""
    names = [item.name for item in steps.items(SDXL) if item.name in document["items"]]
    firsts = list(dict.fromkeys(name.split()[0] for name in names))
    rows = [row for name in sorted(names, key=lambda name: firsts.index(name.split()[0]))
            for row in _step_rows(document, name)]  # fmt: skip
    return markdown(("item", "ms", "TFLOP/s", "of the run's product"), rows)


def _step_rows(document: Document, name: str) -> list[Sequence[str]]:
    """Return the row of an item; none for a check without a time."""
    item = document["items"][name]
    if item["state"] not in ("measured", "passed"):
        return [(f"`{name}`", f"{item['state']}: {item['why']}" if "why" in item else item["state"], "–", "–")]
    if "median" not in item["result"]:
        return []
    milliseconds, teraflop = item["result"]["median"], _teraflop(document, name)
    if teraflop is None:
        return [(f"`{name}`", f"{milliseconds:.1f}", "–", "–")]
    rate = teraflop / milliseconds * 1e3
    share = rate * 1e12 / document["items"]["ceilings"]["result"]["flops_per_second"]
    return [(f"`{name}`", f"{milliseconds:.1f}", f"{rate:.0f}", f"{share:.0%}")]


def _teraflop(document: Document, name: str) -> float | None:
    """Return the operations of a step, which were counted for any item of the same graph."""
    graph = "text_step" if name.startswith("diffusers") else name.split()[0]
    counted = (item.get("result", {}).get("teraflop") for like, item in document["items"].items()
               if like.split()[0] == graph)  # fmt: skip
    return next((float(each) for each in counted if each is not None), None)


def goal_table(document: Document) -> str:
    """Return every goal with its floor, what was measured, and the verdict."""
    results, rows = report.results(document), []
    for goal in goals.GOALS:
        found = goal.found(results)
        value, how = (f"{found[0]:.4g} {goal.unit}", f"`{found[1]}`") if found else ("–", "–")
        floor = "–" if goal.floor is None else f"{goal.floor:.4g}"
        rows.append((goal.what, goal.words, floor, value, how, goal.verdict(found[0] if found else None)))
    return markdown(("goal", "wanted", "floor or ceiling", "measured", "with", "verdict"), rows)


TABLES = {"run": run_table, "steps": step_table, "goals": goal_table}


def drawn() -> str:
    """Return benchmarks/README.md with its tables drawn."""
    document = roofline.newest()
    return with_tables([PAGE], {name: draw(document) for name, draw in TABLES.items()})[PAGE]


if __name__ == "__main__":
    PAGE.write_text(drawn())
