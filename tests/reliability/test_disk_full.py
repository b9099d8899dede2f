from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_commands import COMMANDS, Command
from full_disk import FullDisk
from fuzz_folders import inside

from infid_export.cli.main import run

Record = Callable[[str, object], None]
# those that take only tenths of a second
_QUICK = ("generate", "enroll", "template", "prepare", "import", "compile-kernels", "tune")
_LEFTOVERS = ("*.partial", "*.scratch-*", ".*.partial")


@pytest.fixture
def pristine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command starts from, with the results of an earlier call."""
    command: Command = COMMANDS[request.node.callspec.params["name"]]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pristine"
    folder.mkdir()
    command.prepare(folder)
    if command.again:
        assert run_in(folder, command) == 0
    return folder


def run_in(folder: Path, command: Command) -> int:
    with inside(folder), command.stubs():
        return run(command.words.split())


def points(pristine: Path, command: Command, work: Path) -> list[str]:
    """Return the writes of an undisturbed call."""
    for _ in range(2):  # the second call has the first one's caches, like the calls on a full disk
        shutil.copytree(pristine, work)
        disk = FullDisk(work)
        with disk.watching():
            assert run_in(work, command) == 0
        shutil.rmtree(work)
    return disk.points


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(pristine: Path, command: Command, work: Path, fails_at: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Run a command on a disk that is full from one write on, and again when there is space."""
    shutil.copytree(pristine, work)
    disk = FullDisk(work, fails_at)
    capfd.readouterr()
    with disk.watching():
        code = run_in(work, command)
    err = capfd.readouterr().err
    where = f"at {disk.points[fails_at - 1]}, write {fails_at}:\n{err}"
    assert code == 1, where
    assert "Traceback" not in err and err.count("error: ") == 1 and err.count("  fix: ") == 1, where
    assert any(word in err for word in ("full", "No space left", "cannot be written")), where
    command.whole(work)
    before, after = content(pristine), content(work)
    lost = [name for name in before if name.split("/")[0] not in command.results and after.get(name) != before[name]]
    assert lost == [], where
    for name in command.results:  # existing results are still there, possibly in a newer version
        assert (work / name).exists() or not (pristine / name).exists(), where
    assert [path.name for pattern in _LEFTOVERS for path in work.rglob(pattern)] == [], where
    assert run_in(work, command) == 0, where
    command.whole(work)
    shutil.rmtree(work)


@pytest.mark.parametrize("name", _QUICK)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    name: str, pristine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = points(pristine, COMMANDS[name], tmp_path / "work")
    assert found
    for fails_at in sorted({1, 1 + len(found) // 2, len(found)}):
        check(pristine, COMMANDS[name], tmp_path / "work", fails_at, capfd)


@pytest.mark.reliability
@pytest.mark.parametrize("name", COMMANDS)
def test_the_disk_is_full_at_every_write(
    name: str, pristine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], record_property: Record
) -> None:
    found = points(pristine, COMMANDS[name], tmp_path / "work")
    faults = []
    for fails_at in range(1, len(found) + 1):
        try:
            check(pristine, COMMANDS[name], tmp_path / "work", fails_at, capfd)
        except AssertionError as error:
            faults.append(str(error))
            shutil.rmtree(tmp_path / "work")
    record_property("figures", json.dumps({"command": name, "points": len(found), "faults": len(faults)}))
    assert faults == []
