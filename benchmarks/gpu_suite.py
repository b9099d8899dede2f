"""Everything that only a GPU can tell about the kernels, in one command.

Usage::

    PYTHONPATH=kernels:engines python benchmarks/gpu_suite.py [--quick] [--only NAME ...] [--limit-s 540]
    PYTHONPATH=kernels:engines python benchmarks/gpu_suite.py --resume benchmarks/results/gpu-….json
    PYTHONPATH=kernels:engines python benchmarks/gpu_suite.py --dry-run

It needs torch, triton and numpy; bundles are launched with cuda-python, if it is installed. First every operation is
compared with float64; one that is red is not timed. Then the card's ceilings are measured, then ours and its rivals on
the same inputs. The results are written after every item, to `gpu-<name>-<date>.json`; `roofline.py` draws
kernels/README.md from them. Exit code 1: no GPU, an operation, form or bundle is wrong, the same inputs gave different
bits, or compute-sanitizer found something.

All of it takes longer than one command may take where GPUs are lent for minutes. So the first command stops at
--limit-s, and `--resume RESULTS.json` goes on with what it skipped, on the same GPU, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import triton

import gpu_checks
import gpu_items
import roofline
from gpu_bench import DTYPES, Bench, Item
from gpu_items import OURS
from gpu_rivals import EAGER_PAIR, RIVALS
from infid_kernels.measure import SDXL_CALLS

_SLACK = 5.0  # seconds kept for writing and the table
# Aims on an H200: TFLOP/s, how many times faster, and than whom; None is the best rival.
GOALS = {
    "mixed-4096": (480, 1.15, None), "mixed-1024": (400, 1.15, None),
    "merged-4096": (None, 1.5, EAGER_PAIR), "merged-1024": (None, 1.5, EAGER_PAIR),
}  # fmt: skip
_SAME = ("gpu", "torch", "triton", "cuda", "commit", "changed_files", "quick")  # of results that belong together


@dataclass
class Suite:
    """Runs items one after the other, and writes down what came of each.

    Args:
        bench: the device.
        path: where the document is written, whole, after every item.
        document: what is written; the items in it that have a result are not run again.
        quiet: no line an item.
    """

    bench: Bench
    path: Path
    document: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False

    def __post_init__(self) -> None:
        found = self.document.setdefault("items", {})
        self.before = {name: item for name, item in found.items() if item["state"] not in ("skipped", "error")}
        self.bench.ceilings = self.before.get("ceilings", {}).get("result", {})
        self.red: set[tuple[str | None, int]] = set()
        self.sound = True

    def run(self, checks: Sequence[Item], items: Sequence[Item], only: Sequence[str] = ()) -> bool:
        """Run the checks and then the chosen items.

        Returns:
            Whether everything that was checked is right.
        """
        for item in checks:
            if self._run(item)["state"] != "passed":
                self.red.add((item.op, item.d))  # one that was not checked is not timed either
                self.sound = False
        for item in items:
            if item.always or not only or any(item.name.startswith(name) for name in only):
                outcome = self._run(item)
                self.sound = self.sound and not (item.decides and outcome["state"] in ("FAILED", "error"))
        return self.sound

    def _run(self, item: Item) -> dict[str, Any]:
        if item.name in self.before:
            return self.before[item.name]
        started = time.monotonic()
        outcome = self._outcome(item)
        outcome["seconds"] = round(time.monotonic() - started, 2)
        self.document["items"][item.name] = outcome
        write(self.path, self.document)
        if not self.quiet:
            left = self.bench.seconds_left()
            why = f": {outcome['why']}" if "why" in outcome else ""
            print(f"{outcome['state']:8} {item.name} ({outcome['seconds']:.1f} s, {left:.0f} s left){why}",
                  file=sys.stderr, flush=True)  # fmt: skip
        return outcome

    def _outcome(self, item: Item) -> dict[str, Any]:
        left = self.bench.seconds_left() - _SLACK
        if (item.op, item.d) in self.red:
            why = f"{item.op} with heads of {item.d} is red: its checks did not all pass"
            return {"state": "skipped", "why": why}
        if item.seconds > left:
            return {"state": "skipped", "why": f"it takes about {item.seconds:.0f} s, {max(left, 0):.0f} s are left"}
        try:
            result = item.measure(self.bench)
        except Exception as error:  # one item must not take the others' results with it
            return {"state": "error", "why": f"{type(error).__name__}: {error}"}
        if "passed" not in result:
            return {"state": "measured", "result": result}
        return {"state": "passed" if result["passed"] else "FAILED", "result": result}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write the document, whole or not at all; NaN and infinity, which JSON lacks, become words."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on: card, driver, versions, commit."""
    card = torch.cuda.get_device_properties(device)
    asked = ("driver_version", "clocks.max.sm", "power.limit")
    said = _said("nvidia-smi", f"--id=GPU-{card.uuid}", f"--query-gpu={','.join(asked)}", "--format=csv,noheader")
    return {
        "gpu": {
            "name": card.name, "architecture": f"sm_{card.major}{card.minor}",
            "multiprocessors": card.multi_processor_count, "memory_bytes": card.total_memory,
            "l2_bytes": card.L2_cache_size, **dict(zip(asked, said.split(", "), strict=False)),
        },
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": _said("git", "-C", str(roofline.ROOT), "rev-parse", "HEAD") or "unknown",
        "changed_files": _said("git", "-C", str(roofline.ROOT), "status", "--porcelain", "--untracked-files=no"),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def _said(*command: str) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def summary(document: dict[str, Any]) -> list[str]:
    """Return the table that is printed last, and what came of the goals."""
    lines = [f"{'call':24} {'ours, ms':>9} {'TFLOP/s':>8} {'% matrix':>8} {'% bytes':>8} {'x faster':>8}  best rival"]
    for name in SDXL_CALLS:
        for kind in DTYPES:
            item = document["items"].get(f"speed {name} {kind}")
            if item is None:
                continue
            label = f"{name} {kind}"
            if item["state"] != "measured":
                lines.append(f"{label:24} {item['state']}: {item['why']}")
                continue
            result, ours = item["result"], item["result"]["contenders"][OURS]
            shares = [f"{ours[key]:8.0%}" if key in ours else f"{'-':>8}" for key in ("of_matrix_ceiling",
                                                                                     "of_bytes_floor")]  # fmt: skip
            times = f"{result['times_faster']:8.2f}" if result["best_rival"] else f"{'-':>8}"
            lines.append(f"{label:24} {ours['median']:9.4f} {ours['teraflops']:8.1f} {' '.join(shares)} {times}  "
                         f"{result['best_rival'] or 'none ran'}")  # fmt: skip
            lines += _goals(name, result, document["gpu"]) if kind == "float16" else []
            lines += [f"    {rival}: {row['error']}"[:120] for rival, row in result["contenders"].items()
                      if "error" in row]  # fmt: skip
    counted: dict[str, int] = {}
    for item in document["items"].values():
        counted[item["state"]] = counted.get(item["state"], 0) + 1
    lines.append(", ".join(f"{count} {state}" for state, count in sorted(counted.items())))
    return lines


def _goals(name: str, result: dict[str, Any], card: dict[str, Any]) -> list[str]:
    """Return what came of the goals and, if one is missed, what the time is made of."""
    teraflops, wanted, rival = GOALS[name]
    ours, found = result["contenders"][OURS], []
    if teraflops is not None:
        found.append((f"{ours['teraflops']:.0f} of {teraflops} TFLOP/s", ours["teraflops"] / teraflops))
    against = result["contenders"].get(rival or result["best_rival"], {})
    if against.get("right"):
        times = against["median"] / ours["median"]
        found.append((f"{times:.2f} of {wanted} × {rival or 'the best rival'}", times / wanted))
    lines = [f"    goal on an H200: {what}, " + ("met" if share >= 1 else f"missed by {1 - share:.0%}")
             for what, share in found]  # fmt: skip
    return [*lines, *(_limits(name, result, card) if any(share < 1 for _, share in found) else [])]


def _limits(name: str, result: dict[str, Any], card: dict[str, Any]) -> list[str]:
    """Return how the tiles fill the chip, and what its units need beside what was measured."""
    call, at_once = SDXL_CALLS[name], result.get("tiles_at_once", 1)
    places = at_once * card["multiprocessors"]
    tiles, needed, filled = roofline.rounds(call, result["configuration"]["block_m"], places)
    lines = [f"{tiles} tiles, {at_once} at once on a multiprocessor: {needed} rounds, {filled:.0%} filled"]
    known = next((gpu for gpu in roofline.GPUS if gpu.mark in card["name"]), None)
    if known is not None:
        units = [f"{unit} {least:.1f} µs" for unit, least in roofline.limits(call, known).items()]
        alone = result["contenders"]["attention kernel alone"]["median"] * 1e3
        lines.append(f"the attention kernel alone takes {alone:.1f} µs; at least: {', '.join(units)}")
    return [f"    limits: {line}" for line in lines]


def plan(checks: Sequence[Item], items: Sequence[Item]) -> list[str]:
    """Return what would be measured, with the work and the floor of every call."""
    lines = [f"{item.name} (about {item.seconds:.0f} s)" for item in (*checks, *items)]
    lines.append(f"about {sum(item.seconds for item in (*checks, *items)):.0f} s; --resume goes on after --limit-s")
    lines += ["", f"{'call':12} {'GFLOP':>8} {'MB':>6}  floor, µs: {', '.join(gpu.name for gpu in roofline.GPUS)}"]
    for name, call in SDXL_CALLS.items():
        floors = [f"{max(roofline.limits(call, gpu).values()):.1f}" for gpu in roofline.GPUS]
        lines.append(f"{name:12} {roofline.flops(call) / 1e9:8.2f} {roofline.least_bytes(call) / 1e6:6.1f}  "
                     f"{', '.join(floors)}")  # fmt: skip
    rivals = [f"  {rival.op}: {rival.name}" for rival in RIVALS]
    return [*lines, "", "rivals", *rivals]


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Measure, and return the exit code."""
    started = clock()
    parser = argparse.ArgumentParser(description="Measure the kernels on this GPU.")
    parser.add_argument("--output", type=Path, default=roofline.RESULTS, metavar="DIR", help="benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="fewer samples and candidates, fp16 only")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="items whose names begin so, and checks")
    parser.add_argument("--limit-s", type=float, default=540, metavar="S", help="seconds for this command (540)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results to go on with")
    parser.add_argument("--seed", type=int, metavar="N", help="of the inputs (a fresh one, recorded in the results)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be measured; needs no GPU")
    options = parser.parse_args(arguments)
    checks, items = gpu_checks.correctness(), gpu_items.items(options.quick)
    unknown = [name for name in options.only if not any(item.name.startswith(name) for item in (*checks, *items))]
    if unknown:
        print(f"error: no item begins with {unknown[0]!r}; --dry-run lists them.", file=sys.stderr)
        return 1
    if options.dry_run:
        print("\n".join(plan(checks, items)))
        return 0
    if not torch.cuda.is_available():
        print("error: this measures on an NVIDIA GPU, and torch sees none; --dry-run lists what would be measured.",
              file=sys.stderr)  # fmt: skip
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    bench = Bench(device, options.quick, lambda: options.limit_s - (clock() - started), seed)
    document = {"schema_version": 1, **machine(device), "seed": seed, "quick": options.quick,
                "only": list(options.only), "limit_s": options.limit_s}  # fmt: skip
    if options.resume is not None:
        before = json.loads(options.resume.read_text())
        differing = [name for name in _SAME if before.get(name) != document[name]]
        if differing:
            print(f"error: {options.resume} has another {', '.join(differing)}; start afresh without --resume.",
                  file=sys.stderr)  # fmt: skip
            return 1
        document["items"] = before["items"]
    options.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", document["gpu"]["name"].lower()).strip("-")
    path = options.resume or options.output / f"gpu-{slug}-{re.sub(r'[^0-9T]', '', document['date'][:19])}.json"
    sound = Suite(bench, path, document).run(checks, items, options.only)
    print("\n".join([*summary(document), str(path)]))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
