"""Runs items one after the other, records each outcome, and survives an item that hangs or loses the GPU."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.kernels import candidates, precompile
from benchmarks.suite import child, report
from benchmarks.suite.bench import Bench, Item, Result
from benchmarks.suite.json_files import write

SLACK = 5.0  # seconds reserved for writing the results and printing the table
LAST_MOMENT = 2.0  # seconds before the limit at which the command ends, whatever it is doing
_PATIENCE = 3.0  # an item is stopped after this many times its expected seconds, or the workload's patience if longer


class Suite:
    """Runs items one after the other, and records each outcome.

    A kernel may never end, or leave the GPU unusable for this process. The first is detected by a timer, the second
    after the item; in both cases the item is recorded as an error, and `restart` restarts this program.

    Args:
        bench: the device.
        path: where the document is written atomically after every item.
        document: the results; items in it that have an outcome other than `skipped` are not run again.
        restart: called when this process cannot continue.
        quiet: print no line per item.
    """

    def __init__(
        self, bench: Bench, path: Path, document: dict[str, Any], restart: Callable[[], None], quiet: bool = False
    ) -> None:
        self.bench, self.path, self.document, self.quiet = bench, path, document, quiet
        self.restart = restart
        self.listener = precompile.Listener()
        items = document.setdefault("items", {})
        self.before = {name: item for name, item in items.items() if item["state"] != "skipped"}
        bench.results.update(report.results(document))
        bench.ceilings.update(items.get("ceilings", {}).get("result", {}))
        bench.keep = self._keep
        candidates.adopt_again(bench)
        self.failed: set[tuple[str | None, int]] = set()
        self.sound = True
        self._lock = threading.Lock()  # its holder writes the document
        self._running: Item | None = None
        self._kept: Result = {}

    def run(self, items: Sequence[Item]) -> bool:
        """Run items in order.

        Returns:
            Whether every check passed, in this run and in the results it continues.
        """
        triton.knobs.compilation.listener = self.listener
        try:
            for item in items:
                self._judge(item, self.before.get(item.name) or self._run(item))
        finally:
            triton.knobs.compilation.listener = None
        return self.sound

    def _judge(self, item: Item, outcome: dict[str, Any]) -> None:
        if item.check and outcome["state"] != "passed":
            self.failed.add((item.op, item.d))  # an operation that was not checked is not timed either
            self.sound = self.sound and outcome["state"] == "unavailable"
        if item.decides and (outcome["state"] == "FAILED" or outcome.get("raised")):
            self.sound = False

    def _keep(self, result: Result) -> None:
        self._kept = result

    def _run(self, item: Item) -> dict[str, Any]:
        started = time.monotonic()
        self._kept = {}
        patience = max(_PATIENCE * item.seconds, self.bench.workload.patience)
        patience = min(patience, self.bench.seconds_left() - LAST_MOMENT)
        clock = threading.Timer(max(patience, 0.0), self._overrun, (item, started))
        clock.daemon = True
        self._running = item
        clock.start()
        outcome = self._outcome(item)
        with self._lock:
            self._running = None
        clock.cancel()
        self._write_down(item, outcome, started)
        self._clean_up(item)
        return outcome

    def _write_down(self, item: Item, outcome: dict[str, Any], started: float) -> None:
        outcome["seconds"] = round(time.monotonic() - started, 2)
        compiled = self.listener.taken()
        if compiled:
            outcome["kernels_compiled"] = compiled
        self.document["items"][item.name] = outcome
        if "result" in outcome and outcome["state"] != "FAILED":
            self.bench.results[item.name] = outcome["result"]
        write(self.path, self.document)
        if not self.quiet:
            left = self.bench.seconds_left()
            why = f": {outcome['why']}" if "why" in outcome else ""
            print(f"{outcome['state']:11} {item.name} ({outcome['seconds']:.1f} s, {left:.0f} s left){why}",
                  file=sys.stderr, flush=True)  # fmt: skip

    def _outcome(self, item: Item) -> dict[str, Any]:
        left = self.bench.seconds_left() - SLACK
        if (item.op, item.d) in self.failed and not item.check:
            why = f"{item.op} with head size {item.d} is not known to be correct: not all of its checks passed"
            return {"state": "skipped", "why": why}
        if item.seconds > left:
            return {
                "state": "skipped",
                "why": f"it takes about {item.seconds:.0f} s, and {max(left, 0):.0f} s are left",
            }
        try:
            result = item.measure(self.bench)
        except Exception as error:  # one item's error must not lose the others' results
            kept = {"result": self._kept} if self._kept else {}
            return {"state": "error", "why": f"{type(error).__name__}: {error}", "raised": True, **kept}
        if "skipped" in result:
            return {"state": "skipped", "why": result["skipped"]}
        for state in ("unavailable", "error"):
            if state in result:
                return {"state": state, "why": result[state], "result": result}
        if "passed" not in result:
            return {"state": "measured", "result": result}
        return {"state": "passed" if result["passed"] else "FAILED", "result": result}

    def _overrun(self, item: Item, started: float) -> None:
        """End an item that takes too long, from another thread."""
        with self._lock:
            if self._running is not item:
                return
            seconds = time.monotonic() - started
            why = f"it was stopped after {seconds:.0f} s; {item.seconds:.0f} s were expected"
            kept = {"result": self._kept} if self._kept else {}
            self._write_down(item, {"state": "error", "why": why, "raised": True, **kept}, started)
            self._give_up(item, why)

    def _clean_up(self, item: Item) -> None:
        gc.collect()
        try:
            self.bench.synchronize()  # a kernel's error is raised here, even if an item recorded it as its result
            torch.cuda.empty_cache()
        except RuntimeError as error:  # every further use of the GPU by this process fails
            self._give_up(item, f"this process has lost the GPU: {error}".splitlines()[0])

    def _give_up(self, item: Item, why: str) -> None:
        self.document.setdefault("restarts", []).append({"item": item.name, "why": why})
        write(self.path, self.document)
        child.kill_all()
        self.restart()
