from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infid_engines import hashes
from infid_engines.errors import InputError
from infid_engines.hashes import remembered_sha256
from infid_engines.manifest import sha256_file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose last change is older than the resolution of the file system's timestamps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_STEP_NS", 0)
    path = tmp_path / "a"
    path.write_text("one")
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    monkeypatch.setattr(hashes, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    return read


def test_an_unchanged_file_is_hashed_once(file, monkeypatch):
    read = counted(monkeypatch)
    assert remembered_sha256(file) == remembered_sha256(file) == sha256_file(file)
    assert read == [file]


def replaced(file: Path, times: tuple[int, int]) -> None:
    other = file.with_name("b")
    other.write_text("two")
    os.utime(other, ns=times)
    other.replace(file)


def rewritten(file: Path, times: tuple[int, int]) -> None:
    time.sleep(0.02)  # past the resolution of the file system's timestamps, see `_STEP_NS`
    file.write_text("two")
    os.utime(file, ns=times)


@pytest.mark.parametrize("change", [replaced, rewritten])
def test_a_file_of_the_same_size_and_time_is_hashed_again(file, change):
    before, status = remembered_sha256(file), file.stat()
    change(file, (status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert remembered_sha256(file) == sha256_file(file) != before


def test_a_file_that_was_just_changed_is_not_remembered(file, monkeypatch):
    monkeypatch.setattr(hashes, "_STEP_NS", 10**12)
    read = counted(monkeypatch)
    assert remembered_sha256(file) == remembered_sha256(file)
    assert read == [file, file]


def test_a_file_that_changes_while_it_is_read_is_rejected(file, monkeypatch):
    def changing(path: Path) -> str:
        replaced(path, (0, 0))
        return sha256_file(path)

    monkeypatch.setattr(hashes, "sha256_file", changing)
    with pytest.raises(InputError, match="changed while it was read"):
        remembered_sha256(file)


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"a": 1}', ""])
def test_a_broken_cache_is_no_cache(file, content):
    remembered_sha256(file)
    cache = file.parent / "cache/infid-export/hashes.json"
    assert cache.is_file()
    cache.write_text(content)
    assert remembered_sha256(file) == sha256_file(file)


def test_a_cache_that_cannot_be_written_to_is_done_without(file):
    (file.parent / "cache").write_text("a file in its place")
    assert remembered_sha256(file) == sha256_file(file)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None], ids=["folder", "nothing"])
def test_what_is_no_file_is_named(file, make):
    path = file.with_name("c")
    make(path)
    with pytest.raises(InputError, match=r"c cannot be read \("):
        remembered_sha256(path)


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", "/dev/null/me"])
def test_a_home_that_cannot_be_written_to_is_done_without(file, home, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    assert [remembered_sha256(file) for _ in range(2)] == [sha256_file(file)] * 2


def test_no_home_is_done_without(file, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert remembered_sha256(file) == sha256_file(file)
