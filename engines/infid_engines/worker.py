"""Engine builds in a separate process, which isolates the builder's memory and crashes from the caller."""

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infid_engines.backends import BuildRequest
from infid_engines.errors import BuildError, InfidError
from infid_engines.manifest import TensorSpec
from infid_engines.memory import available_memory, peak_memory
from infid_engines.progress import Stage
from infid_engines.registry import get_backend


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
    source = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
    }
    with (
        tempfile.TemporaryFile("w+") as errors,  # not a pipe, since nobody reads it before the builder ends
        subprocess.Popen(
            [sys.executable, "-m", "infid_engines.worker", json.dumps(job, default=str)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            answer = _follow(process, stage)
            process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        said = errors.read()
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise BuildError(
            f"The {backend} builder was killed ({name}) while building {request.onnx.stem}"
            + ("; the system probably ran out of memory." if name == "SIGKILL" else "."),
            fix=f"Free memory ({available_memory() / 1e9:.1f} GB are available now; `infid-export build --dry-run` "
            "estimates the need) and run the command again: finished artifacts are kept.",
        )
    if "problem" in answer:
        raise BuildError(answer["problem"], fix=answer["fix"])
    if process.returncode != 0:
        raise RuntimeError(f"the {backend} builder failed:\n{said}")
    return int(answer["peak_bytes"])


def _follow(process: subprocess.Popen[str], stage: Stage) -> dict[str, Any]:
    """Forward progress lines, and return the last line, which is the answer."""
    answer: dict[str, Any] = {}
    assert process.stdout is not None
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
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


def _main(text: str) -> None:
    job = json.loads(text)
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
    try:
        backend.build(request, _PipeStage())
    except InfidError as error:
        _say({"problem": error.problem, "fix": error.fix})
        return
    _say({"peak_bytes": peak_memory()})


if __name__ == "__main__":
    _main(sys.argv[1])
