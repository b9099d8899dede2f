"""What `gpu_suite.py` prints: the plan of both commands with --dry-run, and the table with the goals at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kernels import roofline
from benchmarks.kernels.baselines import BASELINES
from benchmarks.kernels.speeds import OURS
from benchmarks.suite import goals
from benchmarks.suite.bench import DTYPES, SDXL, WORKLOADS, Item, Result
from infid_kernels.autotune import label
from infid_kernels.tuning import Entry

LIMITS = {"first": 585.0, "second": 195.0, "all": 780.0}  # seconds of a command, unless --limit-s says otherwise
PHASES = {"first": (1,), "second": (2,), "all": (1, 2)}


def plan(items: Sequence[Item]) -> list[str]:
    """Return what both commands would run, with the expected seconds, and the work and floor of every call."""
    lines = []
    for phase, part in ((1, "first"), (2, "second")):
        lines += [f"{part} command, at most {LIMITS[part]:.0f} s", f"{'s':>6} {'until':>6}  item"]
        until = 0.0
        for item in items:
            if item.phase == phase:
                until += item.seconds
                lines.append(f"{item.seconds:6.1f} {until:6.0f}  {item.name}")
        lines += [f"{until:.0f} s in total", ""]
    lines += [f"{'call':12} {'GFLOP':>8} {'MB':>6}  floor, µs: {', '.join(gpu.name for gpu in roofline.GPUS)}"]
    for name, call in SDXL.calls.items():
        floors = [f"{max(roofline.limits(call, gpu).values()):.1f}" for gpu in roofline.GPUS]
        lines.append(f"{name:12} {roofline.flops(call) / 1e9:8.2f} {roofline.least_bytes(call) / 1e6:6.1f}  "
                     f"{', '.join(floors)}")  # fmt: skip
    baselines = [f"  {baseline.op}: {baseline.name}" for baseline in BASELINES]
    return [*lines, "", "baselines", *baselines, "", "goals", *(f"  {line}" for line in goals.verdicts({}))]


def results(document: Mapping[str, Any]) -> dict[str, Result]:
    """Return the results of the items, without those of failed ones."""
    return {
        name: item["result"] for name, item in document["items"].items()
        if "result" in item and item["state"] != "FAILED"
    }  # fmt: skip


def summary(document: Mapping[str, Any], entries: Sequence[Entry]) -> list[str]:
    """Return the table of the calls, the table entries from the candidates, and the verdicts on the goals."""
    lines = [*_table(document), *_troubles(document)]
    if entries:
        lines += ["", "tuning table entries from the candidates"]
        lines += [f"  {each.op}, {each.queries} queries or more, {'full' if each.even_n else 'partial'} blocks: "
                  f"{label(each.configuration)}; {each.evidence}" for each in entries]  # fmt: skip
    if document["model"] == SDXL.name:
        found = results(document)
        lines += ["", "goals on an H100 or H200", *(f"  {line}" for line in goals.verdicts(found))]
        lines += [f"  {line}" for line in goals.limits(found, document["gpu"])]
    counted: dict[str, int] = {}
    for item in document["items"].values():
        counted[item["state"]] = counted.get(item["state"], 0) + 1
    return [*lines, "", ", ".join(f"{count} {state}" for state, count in sorted(counted.items()))]


def _table(document: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'call':24} {'ours, ms':>9} {'TFLOP/s':>8} {'% matrix':>8} {'% bytes':>8} {'x faster':>8}  best baseline"
    ]
    for name in WORKLOADS[document["model"]].calls:
        for kind in DTYPES:
            item = document["items"].get(f"speed {name} {kind}")
            if item is not None:
                lines += _row(f"{name} {kind}", item)
    return lines


def _row(what: str, item: Mapping[str, Any]) -> list[str]:
    if item["state"] != "measured":
        return [f"{what:24} {item['state']}: {item['why']}"]
    result, ours = item["result"], item["result"]["contenders"][OURS]
    shares = [f"{ours[key]:8.0%}" if key in ours else f"{'-':>8}" for key in ("of_matrix_ceiling", "of_bytes_floor")]
    times = f"{result['times_faster']:8.2f}" if result["best_baseline"] else f"{'-':>8}"
    best = result["best_baseline"] or "none ran"
    first = f"{what:24} {ours['median']:9.4f} {ours['teraflops']:8.1f} {' '.join(shares)} {times}  {best}"
    errors = [f"    {name}: {row['error'].splitlines()[0]}"[:120] for name, row in result["contenders"].items()
              if "error" in row]  # fmt: skip
    return [first, *errors]


def _troubles(document: Mapping[str, Any]) -> list[str]:
    """Return what did not go as planned: failed items and errors, restarts, kernels compiled late."""
    found = [
        f"{item['state']}: {name}" + (f": {item['why']}" if "why" in item else "")
        for name, item in document["items"].items() if item["state"] in ("FAILED", "error")
    ]  # fmt: skip
    found += [f"restarted after {each['item']}: {each['why']}" for each in document.get("restarts", [])]
    late = sum(len(item.get("kernels_compiled", [])) for item in document["items"].values())
    if late:
        found.append(f"{late} kernels were compiled during items, not beforehand")
    return [line[:200] for line in found]
