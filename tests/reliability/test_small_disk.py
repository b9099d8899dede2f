from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk_commands import COMMANDS
from test_disk_full import run_in

Record = Callable[[str, object], None]
_KIBIBYTES = (0, 4, 64, 1024, 2400, 4096, 5000, 6000, 6500, 7000, 7500)  # of space; the build needs 8 MB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk with a given number of kibibytes; the next one is mounted over it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = 0

    def mount(kibibytes: int) -> Path:
        nonlocal mounted
        options = f"size={kibibytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs the right to mount a file system: {done.stderr.decode().strip()}")
        mounted += 1
        return folder

    yield mount
    for _ in range(mounted):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.reliability
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a file system")
def test_a_build_on_a_small_disk_says_so_and_goes_on_when_there_is_room(
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    record_property: Record,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = COMMANDS["build"]
    for kibibytes in _KIBIBYTES:
        folder = small_disk(256 + kibibytes)
        command.prepare(folder)
        capfd.readouterr()
        assert run_in(folder, command) == 1, kibibytes
        err = capfd.readouterr().err
        assert "is full" in err and err.count("error: ") == err.count("  fix: ") == 1 and "Traceback" not in err, err
        assert not (folder / "built").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        assert run_in(folder, command) == 0
        command.whole(folder)
    record_property("figures", json.dumps({"command": "build", "small disks": len(_KIBIBYTES), "faults": 0}))
