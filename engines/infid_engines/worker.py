"""Engine builds in separate processes, which isolates the builders' memory and crashes from the caller."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infid_engines.backends import BuildRequest
from infid_engines.errors import BuildError, InfidError
from infid_engines.manifest import TensorSpec
from infid_engines.memory import available_memory, peak_memory
from infid_engines.progress import Stage
from infid_engines.registry import get_backend


class Children:
    """Child processes that build parts of a folder, which isolates their memory and crashes from this process."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._killed = False
        self._lock = threading.Lock()

    def build(self, backend: str, what: str, function: str, job: Mapping[str, Any], stage: Stage) -> int:
        """Call a function in a child process; several threads may call this at once.

        Args:
            backend: name of the backend, for the messages.
            what: what is built, for the messages.
            function: `module:name` of a function that takes the job and a stage.
            job: its first argument, as plain JSON.
            stage: receives its progress.

        Returns:
            The peak memory of that process, in bytes.

        Raises:
            BuildError: the function rejected the job, or the process was killed.
        """
        source = Path(__file__).resolve().parent.parent
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
        }
        with (
            tempfile.TemporaryFile("w+") as errors,  # not a pipe, since nobody reads it before the builder ends
            subprocess.Popen(
                [sys.executable, "-m", "infid_engines.worker", function, json.dumps(job, default=str)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            ) as process,
        ):
            try:
                self._enter(process)
                answer = _follow(process, stage)
                process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                self._running.discard(process)
            errors.seek(0)
            said = errors.read()
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise BuildError(
                f"The {backend} builder was killed ({name}) while building {what}"
                + ("; the system probably ran out of memory." if name == "SIGKILL" else "."),
                fix=f"Free memory ({available_memory() / 1e9:.1f} GB are available now; `infid-export build --dry-run` "
                "estimates the need) and run the command again: finished artifacts are kept.",
            )
        if "problem" in answer:
            raise BuildError(answer["problem"], fix=answer["fix"])
        if process.returncode != 0:
            raise RuntimeError(f"the {backend} builder failed:\n{said}")
        return int(answer["peak_bytes"])

    def kill(self) -> None:
        """Kill all of them, and those that are started later."""
        with self._lock:
            self._killed = True
            for process in self._running:
                process.kill()

    def _enter(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._running.add(process)
            if self._killed:
                process.kill()


def build_in_subprocess(backend: str, request: BuildRequest, stage: Stage) -> int:
    """Build one engine in a child process.

    Args:
        backend: name of the backend.
        request: what to build.
        stage: receives the builder's progress.

    Returns:
        The peak memory of that process, in bytes.

    Raises:
        BuildError: the builder rejected the graph, or the process was killed.
    """
    kind = type(get_backend(backend))
    job = {"module": kind.__module__, "class": kind.__qualname__, **asdict(request)}
    return Children().build(backend, request.onnx.stem, f"{__name__}:build_engine", job, stage)


def _follow(process: subprocess.Popen[str], stage: Stage) -> dict[str, Any]:
    """Forward progress lines, and return the last line, which is the answer."""
    answer: dict[str, Any] = {}
    assert process.stdout is not None
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if not isinstance(message, dict):  # a library has printed a number
                continue
            if "fraction" in message:
                stage.update(message["fraction"], message["detail"])
            else:
                answer = message
    return answer


class _PipeStage:
    """Writes progress as JSON lines, at most ten per second."""

    def __init__(self) -> None:
        self._last = 0.0

    def update(self, fraction: float, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._last > 0.1:
            self._last = now
            _say({"fraction": fraction, "detail": detail})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def build_engine(job: dict[str, Any], stage: Stage) -> None:
    """Build the engine of a job from `build_in_subprocess`."""
    backend = getattr(importlib.import_module(job.pop("module")), job.pop("class"))()
    request = BuildRequest(
        **{
            **job,
            "onnx": Path(job["onnx"]),
            "output": Path(job["output"]),
            **{name: Path(job[name]) if job[name] else None for name in ("timing_cache", "plugins")},
            "inputs": tuple(TensorSpec(i["name"], i["dtype"], tuple(i["shape"])) for i in job["inputs"]),
        }
    )
    backend.build(request, stage)


def _main(function: str, job: str) -> None:
    module, name = function.split(":")
    try:
        getattr(importlib.import_module(module), name)(json.loads(job), _PipeStage())
    except InfidError as error:
        _say({"problem": error.problem, "fix": error.fix})
        return
    _say({"peak_bytes": peak_memory()})


if __name__ == "__main__":
    _main(*sys.argv[1:])
