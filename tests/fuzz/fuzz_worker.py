"""Runs the cases of one kind in a separate process, and writes each outcome as a line of JSON.

If a case ends the process, its line is missing.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from fuzz_harness import MOST_BYTES, run_case
from fuzz_kinds import KINDS


def main(kind: str, first: int, count: int, path: Path) -> None:
    """Run cases; their seeds count up from `first`."""
    with tempfile.TemporaryDirectory() as folder, path.open("a") as file:
        attempt = KINDS[kind].prepare(Path(folder))
        _limit_memory()
        for seed in range(first, first + count):
            file.write(json.dumps(asdict(run_case(kind, attempt, seed))) + "\n")
            file.flush()


def _limit_memory() -> None:
    """Limit the process to twice the memory of a case, so that a decompression bomb harms no other program."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2 * MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
