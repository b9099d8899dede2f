from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infid_engines.documents import sealed
from infid_engines.errors import DiskFullError, EngineFolderError
from infid_engines.folder import FolderTransaction, Written
from infid_engines.manifest import (
    FileRecord,
    Manifest,
    canonical_key,
    differing_fields,
    sha256_file,
    verify_file,
)
from infid_engines.progress import SilentReporter


def manifest(files: dict[str, FileRecord]) -> Manifest:
    return Manifest("0", {"name": "none", "id": "0"}, {}, "fp32", 64, 64, 1, 1, 1, {}, (), files, {}, {}, {})


def writer(text: str):
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def make(folder: Path, artifacts: dict[str, str]) -> None:
    with FolderTransaction(folder, SilentReporter()) as transaction:
        files = {}
        for name, text in artifacts.items():
            fields = {"text": text}
            files[name] = transaction.find(name, fields) or transaction.place(name, fields, writer(text))
        transaction.commit(manifest(files), {"parity.json": {}})


def test_commit_replaces_the_folder_and_keeps_unchanged_files(tmp_path):
    folder = tmp_path / "engines"
    make(folder, {"a": "one", "sub/b": "two"})
    inode = (folder / "a").stat().st_ino
    make(folder, {"a": "one", "sub/b": "three"})
    assert (folder / "a").stat().st_ino == inode
    assert (folder / "sub/b").read_text() == "three"
    make(folder, {"a": "one"})
    assert sorted(path.name for path in folder.iterdir()) == ["a", "manifest.json", "parity.json"]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".engines.lock"] == ["engines"]


def test_interrupted_work_is_found_again(tmp_path):
    folder = tmp_path / "engines"
    with FolderTransaction(folder, SilentReporter()) as transaction:
        transaction.place("a", {"v": 1}, writer("one"))
    assert not folder.exists()
    with FolderTransaction(folder, SilentReporter()) as transaction:
        assert transaction.find("a", {"v": 1}) is not None
        assert transaction.find("a", {"v": 2}) is None


def test_a_file_knows_what_it_cost_to_make(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(path: Path) -> None:
        clock[0] += 3.0
        path.write_text("one")

    def hungry(path: Path) -> None:
        # not from the allocator's heap, where earlier tests may have left so much free memory that nothing grows
        with mmap.mmap(-1, 300_000_000) as held:
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
            path.write_text("x")

    with FolderTransaction(tmp_path / "engines", SilentReporter()) as transaction:
        large = transaction.place("large", {}, hungry)
        small = transaction.place("small", {}, slow)
        told = transaction.place("told", {}, lambda path: (path.write_text("x"), Written(peak_bytes=7))[1])
        assert large.peak_bytes - small.peak_bytes > 200_000_000
        assert (large.seconds, small.seconds) == (0.0, 3.0)
        assert told.peak_bytes == 7
        transaction.commit(manifest({"large": large, "small": small, "told": told}), {})
    assert Manifest.load(tmp_path / "engines").files["large"] == large


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    make(tmp_path / "big/engines", {"a": "one"})
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "big/engines")
    make(link, {"a": "two"})
    assert link.is_symlink()
    assert (tmp_path / "big/engines/a").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "link"]


@pytest.mark.parametrize("when", ["between renames", "after second rename"])
def test_an_interrupted_exchange_is_finished(tmp_path, when):
    folder, old = tmp_path / "engines", tmp_path / ".engines.old"
    make(folder, {"a": "one"})
    if when == "between renames":
        folder.rename(old)
    else:
        make(tmp_path / "other", {"a": "stale"})
        (tmp_path / "other").rename(old)
    with FolderTransaction(folder, SilentReporter()) as transaction:
        assert transaction.previous is not None
    assert (folder / "a").read_text() == "one"
    assert not old.exists()


KILLED = """
import sys, time
from pathlib import Path
from infid_engines.folder import FolderTransaction, Written
from infid_engines.progress import SilentReporter
with FolderTransaction(Path(sys.argv[1]), SilentReporter()) as t:
    t.place("a", {"v": 1}, lambda path: path.write_text("one") and None)
    def slow(path):
        path.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
    t.place("b", {"v": 1}, slow)
"""


def test_kill_9_leaves_whole_artifacts_only_and_frees_the_lock(tmp_path):
    folder = tmp_path / "engines"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGKILL)
    with FolderTransaction(folder, SilentReporter()) as transaction:
        assert transaction.find("a", {"v": 1}) is not None
        assert transaction.find("b", {"v": 1}) is None


def test_a_second_build_waits_for_the_first(tmp_path):
    """The first continues only once the second has reported that it waits, and leaves a mark before it ends."""
    folder, mark = tmp_path / "engines", tmp_path / "ended"
    notes: list[str] = []
    holder = "import sys\nfrom pathlib import Path\nfrom infid_engines.folder import FolderTransaction\n"
    holder += "from infid_engines.progress import SilentReporter\n"
    holder += "with FolderTransaction(Path(sys.argv[1]), SilentReporter()):\n"
    holder += "    print('held', flush=True)\n    sys.stdin.readline()\n    Path(sys.argv[2]).touch()"
    command = [sys.executable, "-c", holder, str(folder), str(mark)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()

        class Listener(SilentReporter):
            def note(self, text: str) -> None:
                notes.append(text)
                assert not mark.exists()
                print("go on", file=process.stdin, flush=True)

        with FolderTransaction(folder, Listener()):
            assert mark.exists()
    assert notes == [f"another build (process {process.pid}) is writing {folder}; waiting for it"]


def test_a_full_disk_is_explained_and_loses_nothing(tmp_path):
    folder = tmp_path / "engines"
    make(folder, {"a": "one"})

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(DiskFullError, match=r"is full .* GB free.*old folder is unchanged"),
        FolderTransaction(folder, SilentReporter()) as transaction,
    ):
        transaction.place("b", {}, full)
    assert (folder / "a").read_text() == "one"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_opened_gives_its_lock_back(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(DiskFullError, match="is full"), FolderTransaction(tmp_path / "engines", SilentReporter()):
            pass
    assert not list(tmp_path.iterdir())
    with FolderTransaction(tmp_path / "engines", SilentReporter()):
        pass


def test_folders_of_others_are_rejected(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, message in (("mine", "not an engine folder"), ("file", "is a file")):
        with pytest.raises(EngineFolderError, match=message), FolderTransaction(tmp_path / name, SilentReporter()):
            pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_files_are_verified(tmp_path):
    path = tmp_path / "a"
    path.write_text("hello")
    record = FileRecord(sha256_file(path), 5)
    assert verify_file(tmp_path, "a", record) == path
    path.write_text("hellp")
    with pytest.raises(EngineFolderError, match="has changed"):
        verify_file(tmp_path, "a", record)
    path.write_text("hell")
    with pytest.raises(EngineFolderError, match="has 4 bytes"):
        verify_file(tmp_path, "a", record)
    path.unlink()
    with pytest.raises(EngineFolderError, match="is missing"):
        verify_file(tmp_path, "a", record)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json"),
        ("{", "cannot be read"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 2}', "has schema version 2, but .* Build the folder again with"),
        ('{"schema_version": 3}', "it has no seal"),
        (json.dumps(sealed({"schema_version": 3})), "it lacks 'infid_export'"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "cannot be read"),
    ],
)
def test_broken_manifests_are_rejected(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(EngineFolderError, match=message):
        Manifest.load(tmp_path)


def test_manifest_round_trip(tmp_path):
    made = manifest({"a": FileRecord("0" * 64, 3, "k", {"x": [1, 2]})})
    made.write(tmp_path)
    assert json.dumps(Manifest.load(tmp_path).files["a"].key_fields) == '{"x": [1, 2]}'


def test_keys_ignore_order_and_differences_are_named():
    assert canonical_key({"a": 1, "b": 2}) == canonical_key({"b": 2, "a": 1})
    assert differing_fields({"a": 1, "b": [1]}, {"a": 2, "b": (1,), "c": "x"}) == ["a: 1 -> 2", "c: none -> x"]
