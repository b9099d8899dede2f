from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infid_engines.atomic_files import (
    clear_leftovers,
    full_disk_explained,
    locked,
    partial_of,
    remove_folder,
    whole_file,
    whole_folder,
)
from infid_engines.errors import DiskFullError, InputError

ROOT = Path(__file__).parents[2]
PACKAGES = ("infid_export", "engines/infid_engines", "training/infid_training", "kernels/infid_kernels")
BY_HAND = re.compile(r"\bfcntl\b|\bmkstemp\b|\bos\.replace\(|\.name\}\.partial|delete=False|renameat2")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_else_writes_atomically_by_hand() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if BY_HAND.search(path.read_text())
    }
    assert found == {"engines/infid_engines/atomic_files.py"}


def test_a_file_is_replaced_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with whole_file(target) as partial:
        partial.write_text("new")
        assert (partial, target.read_text()) == (partial_of(target), "old")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("private", [False, True])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, private: bool) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(target, private) as partial:
        1 / partial.write_text("")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_cannot_be_flushed_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"The disk with .*/a is full"), whole_file(tmp_path / "a") as partial:
        partial.write_text("new")
    assert not list(tmp_path.iterdir())


def test_private_files_have_siblings_of_their_own_and_one_reader(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with whole_file(target, private=True) as one, whole_file(target, private=True) as other:
        assert one != other
        for path in (one, other):
            assert path.stat().st_mode & 0o777 == 0o600
            path.write_text(path.name)
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.read_text() == one.name
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    partial_of(target).mkdir()
    (partial_of(target) / "of a killed process").touch()
    with whole_folder(target) as partial:
        (partial / "a").write_text("a")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    with pytest.raises(InputError, match="already exists"), whole_folder(target):
        pass
    remove_folder(target)
    assert not list(tmp_path.iterdir())


def test_leftovers_are_cleared(tmp_path: Path) -> None:
    partial_of(tmp_path / "file").touch()
    partial_of(tmp_path / "folder").mkdir()
    (tmp_path / "kept").touch()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_of_nested_blocks_the_outermost_speaks(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFullError) as caught,
        full_disk_explained(tmp_path / "outer", "Buy a larger one."),
        full_disk_explained(tmp_path / "outer/inner/file"),
    ):
        full()
    assert re.fullmatch(r"The disk with .*/outer is full \(\d+\.\d\d GB free\)\.", caught.value.problem)
    assert caught.value.fix == "Buy a larger one."


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_explained(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(ValueError, match="os error 28"), full_disk_explained(tmp_path):
        raise ValueError("os error 28)")


HOLDER = """
import sys
from pathlib import Path
from infid_engines.atomic_files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_is_waited_for_or_not(tmp_path: Path) -> None:
    path, waited = tmp_path / "folder/lock", []
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="Somebody else is here"), locked(path, "Somebody else is here."):
            pass

        def on_wait(holder: str) -> None:
            waited.append(int(holder))
            print("go on", file=process.stdin, flush=True)

        with locked(path, on_wait=on_wait):
            assert path.read_text() == str(os.getpid())
    assert waited == [process.pid]
    assert not path.exists()


def test_a_lock_that_cannot_be_written_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFullError, match="is full"), locked(path):
            pass
    with locked(path, "Somebody else is here."):
        pass


def test_a_lock_where_nothing_can_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"), locked(tmp_path / "file/lock"):
        pass
