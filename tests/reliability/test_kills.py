from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Record = Callable[[str, object], None]
WORKER = Path(__file__).with_name("kill_worker.py")


def killed(kind: str, count: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "OMP_NUM_THREADS": "1",  # a forked child has none of the threads that its parent started
    }
    command = [sys.executable, str(WORKER), kind, str(count), str(folder)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    document: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return document


@pytest.mark.reliability
@pytest.mark.parametrize(("kind", "count"), [("build", 50), ("training", 20), ("template", 50)])
def test_kill_9_at_random_moments(kind: str, count: int, tmp_path: Path, record_property: Record) -> None:
    found = killed(kind, count, tmp_path / "work")
    record_property("figures", json.dumps({**found, "faults": len(found["faults"])}))
    assert found["faults"] == []
    assert found["kills"] == found["finished"] == count
