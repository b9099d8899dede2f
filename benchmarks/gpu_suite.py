"""Everything about speed that only a GPU can show, in two commands of at most 13 minutes in total.

Usage::

    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --output DIR
    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --resume DIR/gpu-….json
    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --part all --limit-s 1200
    PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --dry-run
    TRITON_INTERPRET=1 PYTHONPATH=.:kernels:engines python benchmarks/gpu_suite.py --model demo

The first command measures the most important items, and ends by itself before --limit-s. The second continues its file,
on the same GPU, versions and source: what was skipped, then bf16, and compute-sanitizer. On a CPU, with Triton's
interpreter, both parts run in one command on the demo model.

An operation is timed only after its comparison with float64 passed. Results are written after every item, to
`gpu-<name>-<date>.json`, and the resulting entries of the tuning table to `configurations-….json` beside it.
benchmarks/README.md explains every item. Exit code 1: no GPU; an operation, a bundle or a check failed; or the command
had to be stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.kernels import candidates
from benchmarks.provenance import RESULTS
from benchmarks.suite import item_list, machine, report
from benchmarks.suite.bench import SDXL, WORKLOADS, Bench, Item
from benchmarks.suite.runner import LAST_MOMENT, Suite
from infid_kernels.tuning import architecture_of

_RESTART = 30.0  # seconds; with less time left, a restart is not worth it
_RESTARTS = 5
_STDERR = 2  # its file descriptor, since sys.stderr may not be a file
_IMPORTS = 10.0  # seconds reserved for starting Python and importing torch, before the clock starts


class UsageError(Exception):
    """The suite cannot run here, or not with these arguments; the message says why, and what to do."""


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description="Measure the kernels and the model on this GPU.")
    parser.add_argument("--model", choices=tuple(WORKLOADS), default=SDXL.name, help="demo is for Triton's interpreter")
    parser.add_argument(
        "--part", choices=tuple(report.PHASES), help="items to run (first; second with --resume; all on a CPU)"
    )
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results file to continue")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the results (benchmarks/results, or that of --resume)"
    )
    parser.add_argument("--commit", metavar="SHA", help="commit to record instead of asking git")
    parser.add_argument("--limit-s", type=float, metavar="S", help="time limit in seconds (585, second part 195)")
    parser.add_argument("--quick", action="store_true", help="fewer samples and candidates")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="NAME", help="run only checks and items whose names begin with NAME"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the inputs (a new one, which is recorded)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of both commands; needs no GPU")
    options = parser.parse_args(given)
    if options.part is None and options.resume is not None:
        options.part = "second"
    return options


def find_device(model: str) -> torch.device:
    """Return the device to measure on.

    Raises:
        UsageError: there is neither a GPU that the kernels support nor, for the demo model, Triton's interpreter.
    """
    if triton.knobs.runtime.interpret:
        if model == SDXL.name:
            raise UsageError(
                "Triton's interpreter would take days for SDXL; add --model demo, or unset TRITON_INTERPRET."
            )
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(
            "this needs an NVIDIA GPU, and torch finds none; TRITON_INTERPRET=1 with --model demo runs every section "
            "on a CPU, and --dry-run prints the plan."
        )
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        architecture_of(device)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    return device


def chosen(items: Sequence[Item], options: argparse.Namespace, before: dict[str, Any]) -> list[Item]:
    """Return the items of a part, those of another part that were skipped, and the checks that already ran.

    Raises:
        UsageError: --only matches no item.
    """
    phases = report.PHASES[options.part]
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
    """Load the results to continue, if any, and return where this run writes.

    Raises:
        UsageError: they cannot be read, or cannot be continued by this run.
    """
    if options.resume is None:
        slug = re.sub(r"[^a-z0-9]+", "-", document["gpu"]["name"].lower()).strip("-")
        name = f"gpu-{slug}-{re.sub(r'[^0-9T]', '', document['date'][:19])}.json"
        return Path(options.output or RESULTS) / name
    resumed: Path = options.resume
    try:
        before = json.loads(resumed.read_text())
        differing = machine.differences(before, document)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{resumed} is not a file that this command wrote ({error}).") from error
    if differing:
        raise UsageError(f"{resumed} cannot be continued. {' '.join(differing)} Start without --resume.")
    document.update({name: before[name] for name in ("items", "restarts", "commands", "date") if name in before})
    return Path(options.output or resumed.parent) / resumed.name


def finish(document: dict[str, Any], path: Path, architecture: str) -> None:
    """Write the table entries that follow from the candidates, and print the summary."""
    workload = WORKLOADS[document["model"]]
    origin = f"{document['gpu']['name']}, triton {document['triton']}"
    entries = candidates.entries(workload, report.results(document), architecture, origin)
    files = [path]
    if entries:
        files.append(path.with_name(f"configurations-{path.name}"))
        candidates.write_entries(files[-1], entries)
    print("\n".join([*report.summary(document, entries), *map(str, files)]), flush=True)


def run(
    options: argparse.Namespace, device: torch.device, given: Sequence[str], seconds_left: Callable[[], float]
) -> int:
    """Measure, and return the exit code.

    Raises:
        UsageError: the arguments do not fit each other, or the results to continue.
    """
    seed = torch.seed() % 2**31 if options.seed is None else options.seed
    bench = Bench(device, WORKLOADS[options.model], options.quick, seconds_left, seed)
    document = {"schema_version": 3, "model": options.model, **machine.describe(device, options.commit),
                "quick": options.quick}  # fmt: skip
    command = {"date": document["date"], "part": options.part, "only": list(options.only), "seed": seed,
               "seconds": round(seconds_left())}  # fmt: skip
    path = go_on(options, document)
    document.setdefault("commands", []).append(command)
    items = chosen(item_list.items(bench.workload, options.quick, bench.architecture), options,
                   document.get("items", {}))  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)

    def restart() -> None:
        left = seconds_left() - LAST_MOMENT
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
        print("\n".join(report.plan(item_list.items(WORKLOADS[options.model], options.quick))))
        return 0
    try:
        device = find_device(options.model)
        options.part = options.part or ("all" if device.type == "cpu" else "first")
        seconds = (options.limit_s or report.LIMITS[options.part]) - _IMPORTS
        # this ends the process even if no Python thread can run any more
        faulthandler.dump_traceback_later(max(seconds, 1.0), exit=True, file=_STDERR)
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
