"""`infid-export serve` as a process, and what the system knows of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from benchmarks.provenance import ROOT
from infid_engines.errors import EngineFolderError

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_PROGRAM = "from infid_export.cli.main import entry_point; entry_point()"


class ServerProcess:
    """A server on a free port. As a context manager, it is ready inside the block and stopped after it.

    Args:
        folder: the engine folder.
        scratch: an existing folder for its output; the server also starts there, and has its temporary files there.
        options: more arguments of `infid-export serve`.

    Attributes:
        url: `http://127.0.0.1:PORT`.
        port: the port.
    """

    url: str
    port: int

    def __init__(self, folder: Path, scratch: Path, *options: str) -> None:
        self._stdout, self._stderr = scratch / "stdout", scratch / "stderr"
        paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
        paths += [str(ROOT / name) for name in ("", "engines", "kernels", "training")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(scratch)}
        command = [sys.executable, "-P", "-c", _PROGRAM, "serve", str(folder.resolve()), "--port", "0", "--json"]
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*command, *options], cwd=scratch, env=environment, stdin=subprocess.DEVNULL, stdout=stdout,
                stderr=stderr,
            )  # fmt: skip

    def __enter__(self) -> ServerProcess:
        """Wait until it is ready."""
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def stop(self) -> int:
        """Stop it as a service manager does, and return its exit code."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def resident_mb(self) -> float:
        """Resident memory in MB."""
        return self._status("VmRSS") * 1024 / 1e6

    @property
    def threads(self) -> int:
        """Number of threads."""
        return self._status("Threads")

    @property
    def descriptors(self) -> int:
        """Number of open file descriptors."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    @property
    def bugs(self) -> int:
        """Number of tracebacks that it has printed."""
        return self._stderr.read_text(errors="replace").count("Traceback (most recent call last)")

    @property
    def log(self) -> str:
        """What it has printed on stderr."""
        return self._stderr.read_text(errors="replace")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise RuntimeError(f"/proc/{self._process.pid}/status has no line {name}")

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if not self.alive or time.monotonic() > deadline:
                raise EngineFolderError(
                    f"The server did not start: {self.log[-2000:]}", fix="Serve the folder by hand."
                )
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        if not hasattr(self, "url"):
            try:
                self.url = json.JSONDecoder().raw_decode(self._stdout.read_text())[0]["url"]
            except (ValueError, KeyError):  # it is not printed yet, or an error was
                return False
            self.port = int(self.url.rpartition(":")[2])
        try:
            with build_opener(ProxyHandler({})).open(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (HTTPError, URLError, OSError):
            return False
