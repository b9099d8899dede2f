"""Work that may hang or overrun, in its own process group that is killed at a time limit or with its parent.

`torch.compile`, ahead-of-time compilation and compute-sanitizer run here. The child keeps its results so far in a file,
so that stopping it loses only what it had not finished.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.suite.bench import WORKLOADS, Bench, Result
from benchmarks.suite.json_files import plain, write
from infid_kernels import tuning

_LINES = 20  # last lines of a child's output that are kept
RESERVE = 5.0  # seconds reserved for the results after a child is stopped
_groups: set[int] = set()  # running process groups


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        code: its exit code; None if it was stopped.
        output: the last lines of its output.
        seconds: its running time.
    """

    code: int | None
    output: list[str]
    seconds: float


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a program in a new session; its process group is killed at the limit, or if this process is interrupted.

    Args:
        command: program and arguments.
        seconds: time limit.
        environment: variables added to this process's.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # a pipe could be held open by a grandchild
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                 env={**os.environ, **(environment or {})}, start_new_session=True)  # fmt: skip
        _groups.add(child.pid)
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(max(seconds, 0.0))
        finally:
            _kill(child.pid)  # also processes that the child started and left behind
            child.wait()
            _groups.discard(child.pid)
        output.seek(0)
        lines = output.read().strip().splitlines()[-_LINES:]
    return Ended(code, lines, round(time.monotonic() - started, 2))


def kill_all() -> None:
    """Kill all running process groups; for a process that ends without unwinding."""
    for group in tuple(_groups):
        _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def measure_in_child(function: str, bench: Bench, seconds: float, /, **arguments: Any) -> Result:
    """Run a function that measures in its own Python process, and return its result.

    Args:
        function: as `module:name`; it is called with the child's own bench and the arguments, and returns a result. It
            may call `bench.keep` with a partial result.
        bench: its device, workload, seed, ceilings and results are passed on to the child's bench.
        seconds: time limit; on a CPU at least the workload's patience; less if less is left.
        arguments: plain JSON.

    Returns:
        The result, or the last partial one, with `error` if the child failed or was stopped.
    """
    limit = seconds if bench.on_gpu else max(seconds, bench.workload.patience)
    limit = min(limit, bench.seconds_left() - RESERVE)
    if bench.on_gpu:
        torch.cuda.empty_cache()  # the child needs the memory
    with tempfile.TemporaryDirectory() as folder:
        task, found, entries = (Path(folder) / name for name in ("task.json", "result.json", "entries.json"))
        tuning.write(entries, tuning.measured())  # the child runs with the choices of this process
        task.write_text(json.dumps(plain({
            "function": function, "arguments": arguments, "device": str(bench.device),
            "workload": bench.workload.name, "quick": bench.quick, "seed": bench.seed, "seconds": limit,
            "ceilings": bench.ceilings, "results": bench.results, "found": str(found),
            "entries": str(entries),
        })))  # fmt: skip
        ended = run([sys.executable, "-m", "benchmarks.suite.child", str(task)], limit)
        result: Result = json.loads(found.read_text()) if found.exists() else {}
    result["child_seconds"] = ended.seconds
    if ended.code is None:
        return {**result, "error": f"it was stopped after {ended.seconds:.0f} s", "output": ended.output}
    if ended.code != 0:
        last = ended.output[-1] if ended.output else "no output"
        return {**result, "error": f"its process ended with exit code {ended.code}: {last}", "output": ended.output}
    return result


def _child(task: Mapping[str, Any]) -> None:
    ends = time.monotonic() + task["seconds"]
    found = Path(task["found"])

    def keep(result: Result) -> None:
        write(found, result)

    bench = Bench(
        torch.device(task["device"]), WORKLOADS[task["workload"]], task["quick"], lambda: ends - time.monotonic(),
        task["seed"], task["ceilings"], task["results"], keep,
    )  # fmt: skip
    tuning.load(Path(task["entries"]))
    module, name = task["function"].split(":")
    keep(getattr(importlib.import_module(module), name)(bench, **task["arguments"]))


if __name__ == "__main__":
    _child(json.loads(Path(sys.argv[1]).read_text()))
