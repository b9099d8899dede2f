"""Everything that only a GPU can tell about speed, in two commands of at most ten minutes in all.

Usage::

    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --output DIR
    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --resume DIR/gpu-….json
    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --part all --limit-s 1200
    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --dry-run
    TRITON_INTERPRET=1 PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --model demo

The first command measures what is worth most, and ends by itself before --limit-s. The second goes on in its file, on
the same GPU, versions and source: what was skipped, then ahead-of-time packages, bf16, and compute-sanitizer. On a CPU,
with Triton's interpreter, both parts run in one command on the demo model.

An operation is timed only after its comparison with float64 passed. Results are written after every item, to
`gpu-<name>-<date>.json`, and the entries of the kernels' table that they imply to `configurations-….json` beside it.
benchmarks/README.md explains every item. Exit code 1: no GPU; an operation, a bundle or a check is wrong; the command
had to be stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

import gpu_candidates
import gpu_child
import gpu_compile
import gpu_items
import gpu_machine
import gpu_report
import roofline
from gpu_bench import SDXL, WORKLOADS, Bench, Item, Result
from gpu_json import write
from infid_kernels.tuning import architecture_of

_SLACK = 5.0  # seconds kept for writing and the table
_LAST_MOMENT = 2.0  # before the limit, when the command ends whatever it is doing
_RESTART = 30.0  # seconds without which a restart is not worth it
_RESTARTS = 5
_IMPORTS = 10.0  # seconds kept for starting Python and importing torch, before the clock runs
_PATIENCE = 3.0  # times its expected seconds, and at least the workload's patience, after which an item is stopped


class UsageError(Exception):
    """It cannot be measured here, or not with these arguments; the message says why, and what to do."""


class Suite:
    """Runs items one after the other, and writes down what came of each.

    A kernel may never end, or leave the GPU unusable to this process. The first is noticed by the clock, the second
    after the item; in both cases the item is written down as an error, and `restart` starts this program anew.

    Args:
        bench: the device.
        path: where the document is written, whole, after every item.
        document: what is written; the items in it that have a result are not run again.
        restart: called when this process cannot go on.
        quiet: no line an item.
    """

    def __init__(
        self, bench: Bench, path: Path, document: dict[str, Any], restart: Callable[[], None], quiet: bool = False
    ) -> None:
        self.bench, self.path, self.document, self.quiet = bench, path, document, quiet
        self.restart = restart
        self.listener = gpu_compile.Listener()
        items = document.setdefault("items", {})
        self.before = {name: item for name, item in items.items() if item["state"] != "skipped"}
        bench.results.update(gpu_report.results(document))
        bench.ceilings.update(items.get("ceilings", {}).get("result", {}))
        bench.keep = self._keep
        gpu_candidates.adopt_again(bench)
        self.failed: set[tuple[str | None, int]] = set()
        self.sound = True
        self._lock = threading.Lock()  # whoever holds it writes the document
        self._running: Item | None = None
        self._kept: Result = {}

    def run(self, items: Sequence[Item]) -> bool:
        """Run items in order.

        Returns:
            Whether everything that was checked is right, now or in what is continued.
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
            self.failed.add((item.op, item.d))  # one that was not checked is not timed either
            self.sound = self.sound and outcome["state"] == "unavailable"
        if item.decides and (outcome["state"] == "FAILED" or outcome.get("raised")):
            self.sound = False

    def _keep(self, result: Result) -> None:
        self._kept = result

    def _run(self, item: Item) -> dict[str, Any]:
        started = time.monotonic()
        self._kept = {}
        patience = max(_PATIENCE * item.seconds, self.bench.workload.patience)
        patience = min(patience, self.bench.seconds_left() - _LAST_MOMENT)
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
        left = self.bench.seconds_left() - _SLACK
        if (item.op, item.d) in self.failed and not item.check:
            why = f"{item.op} with heads of {item.d} is not known to be right: its checks did not all pass"
            return {"state": "skipped", "why": why}
        if item.seconds > left:
            return {"state": "skipped", "why": f"it takes about {item.seconds:.0f} s, {max(left, 0):.0f} s are left"}
        try:
            result = item.measure(self.bench)
        except Exception as error:  # one item must not take the others' results with it
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
            why = f"it was stopped after {seconds:.0f} s, {item.seconds:.0f} s were expected"
            kept = {"result": self._kept} if self._kept else {}
            self._write_down(item, {"state": "error", "why": why, "raised": True, **kept}, started)
            self._give_up(item, why)

    def _clean_up(self, item: Item) -> None:
        gc.collect()
        try:
            self.bench.synchronize()  # a fault of a kernel comes up here, also where an item noted it as its result
            torch.cuda.empty_cache()
        except RuntimeError as error:  # whatever this process asks of the GPU now fails
            self._give_up(item, f"the GPU is lost to this process: {error}".splitlines()[0])

    def _give_up(self, item: Item, why: str) -> None:
        self.document.setdefault("restarts", []).append({"item": item.name, "why": why})
        write(self.path, self.document)
        gpu_child.kill_all()
        self.restart()


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description="Measure kernels and model on this GPU.")
    parser.add_argument("--model", choices=tuple(WORKLOADS), default=SDXL.name, help="demo is for Triton's interpreter")
    parser.add_argument("--part", choices=tuple(gpu_report.PHASES), help="first; second with --resume; all on a CPU")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results to go on with")
    parser.add_argument("--output", type=Path, metavar="DIR", help="benchmarks/results, or the folder of --resume")
    parser.add_argument("--commit", metavar="SHA", help="recorded instead of asking git")
    parser.add_argument("--limit-s", type=float, metavar="S", help="seconds for this command (585, second part 195)")
    parser.add_argument("--quick", action="store_true", help="fewer samples and candidates")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="items whose names begin so, and checks")
    parser.add_argument("--seed", type=int, metavar="N", help="of the inputs (a fresh one, recorded in the results)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of both commands; needs no GPU")
    options = parser.parse_args(given)
    if options.part is None and options.resume is not None:
        options.part = "second"
    return options


def find_device(model: str) -> torch.device:
    """Return what is measured on.

    Raises:
        UsageError: there is neither a GPU that the kernels run on nor Triton's interpreter for this model.
    """
    if triton.knobs.runtime.interpret:
        if model == SDXL.name:
            raise UsageError(
                "Triton's interpreter would take days for SDXL; add --model demo, or unset TRITON_INTERPRET."
            )
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(
            "this measures on an NVIDIA GPU, and torch sees none; TRITON_INTERPRET=1 with --model demo runs every "
            "section on a CPU, and --dry-run prints the plan."
        )
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        architecture_of(device)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    return device


def chosen(items: Sequence[Item], options: argparse.Namespace, before: dict[str, Any]) -> list[Item]:
    """Return the items of a part, those of another part that were skipped, and the checks that were made.

    Raises:
        UsageError: --only names none.
    """
    phases = gpu_report.PHASES[options.part]
    skipped = {name for name, item in before.items() if item["state"] == "skipped"}
    of_part = [
        item for item in items
        if item.phase in phases or item.name in skipped or (item.check and item.name in before)
    ]  # fmt: skip
    for name in options.only:
        if not any(item.name.startswith(name) for item in of_part):
            raise UsageError(f"no item of the {options.part} part begins with {name!r}; --dry-run lists them.")
    only = tuple(options.only)
    return [item for item in of_part if item.always or not only or item.name.startswith(only)]


def go_on(options: argparse.Namespace, document: dict[str, Any]) -> Path:
    """Take over the results that are to be continued, if any, and return where this run writes.

    Raises:
        UsageError: they cannot be read, or do not belong together with this run.
    """
    if options.resume is None:
        slug = re.sub(r"[^a-z0-9]+", "-", document["gpu"]["name"].lower()).strip("-")
        name = f"gpu-{slug}-{re.sub(r'[^0-9T]', '', document['date'][:19])}.json"
        return Path(options.output or roofline.RESULTS) / name
    try:
        before = json.loads(options.resume.read_text())
        differing = gpu_machine.differences(before, document)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{options.resume} is no file that this command wrote ({error}).") from error
    if differing:
        raise UsageError(f"{options.resume} cannot be continued. {' '.join(differing)} Start without --resume.")
    document.update({name: before[name] for name in ("items", "restarts", "commands", "date") if name in before})
    return Path(options.output or options.resume.parent) / options.resume.name


def finish(document: dict[str, Any], path: Path, architecture: str) -> None:
    """Write the entries that the candidates imply, and print the table."""
    workload = WORKLOADS[document["model"]]
    machine = f"{document['gpu']['name']}, triton {document['triton']}"
    entries = gpu_candidates.entries(workload, gpu_report.results(document), architecture, machine)
    files = [path]
    if entries:
        files.append(path.with_name(f"configurations-{path.name}"))
        gpu_candidates.write_entries(files[-1], entries)
    print("\n".join([*gpu_report.summary(document, entries), *map(str, files)]), flush=True)


def run(
    options: argparse.Namespace, device: torch.device, given: Sequence[str], seconds_left: Callable[[], float]
) -> int:
    """Measure, and return the exit code.

    Raises:
        UsageError: the arguments do not fit each other, or the results that are to be continued.
    """
    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    bench = Bench(device, WORKLOADS[options.model], options.quick, seconds_left, seed)
    document = {"schema_version": 2, "model": options.model, **gpu_machine.machine(device, options.commit),
                "quick": options.quick}  # fmt: skip
    command = {"date": document["date"], "part": options.part, "only": list(options.only), "seed": seed,
               "seconds": round(seconds_left())}  # fmt: skip
    path = go_on(options, document)
    document.setdefault("commands", []).append(command)
    items = chosen(gpu_items.items(bench.workload, options.quick, bench.architecture), options,
                   document.get("items", {}))  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)

    def restart() -> None:
        left = seconds_left() - _LAST_MOMENT
        if left < _RESTART or len(document["restarts"]) > _RESTARTS:
            finish(document, path, bench.architecture)
            os._exit(1)
        sys.stderr.flush()
        program = [sys.executable, str(Path(__file__).resolve()), *given]
        os.execv(sys.executable, [*program, "--resume", str(path), "--part", options.part, "--limit-s", f"{left:.0f}"])

    sound = Suite(bench, path, document, restart).run(items)
    finish(document, path, bench.architecture)
    return 0 if sound else 1


def main(given: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Measure, and return the exit code."""
    started = clock()
    options = arguments_of(given)
    if options.dry_run:
        print("\n".join(gpu_report.plan(gpu_items.items(WORKLOADS[options.model], options.quick))))
        return 0
    try:
        device = find_device(options.model)
        options.part = options.part or ("all" if device.type == "cpu" else "first")
        seconds = (options.limit_s or gpu_report.LIMITS[options.part]) - _IMPORTS
        # if no Python thread gets its turn any more, this ends the process all the same
        faulthandler.dump_traceback_later(max(seconds, 1.0), exit=True, file=sys.__stderr__)
        return run(options, device, sys.argv[1:] if given is None else given, lambda: seconds - (clock() - started))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        faulthandler.cancel_dump_traceback_later()


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that children are killed


if __name__ == "__main__":
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)
    sys.exit(main())
