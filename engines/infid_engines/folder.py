"""Writes an engine folder as a transaction: nothing is valid until everything is.

Artifacts are written to a sibling `.<name>.building`, one by one, each with a record of what it depends on. After an
interruption, the next build finds the finished artifacts there. At the end, the sibling and the folder are exchanged in
one system call, so a reader sees the old folder or the new one. A lock prevents two builds at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import full_disk_explained, locked, put_in_place, whole_file
from infid_engines.documents import read_json, record, sealed, unsealed
from infid_engines.errors import EngineFolderError
from infid_engines.hashes import remembered_sha256
from infid_engines.manifest import MANIFEST, FileRecord, Manifest, canonical_key, sha256_file, write_json
from infid_engines.memory import peak_memory, reset_peak_memory
from infid_engines.progress import Reporter

_RECORDS = ".records"
_FULL = (
    "Free some space (`infid-export build --dry-run` says how much is needed) and run the command again: "
    "finished artifacts are kept, and the old folder is unchanged."
)


@dataclass(frozen=True)
class Written:
    """What a writer reports about its file.

    Args:
        sha256: hash of the content; empty if it still has to be computed.
        peak_bytes: peak memory of the process that wrote it; 0 if it is this process.
    """

    sha256: str = ""
    peak_bytes: int = 0


class FolderTransaction:
    """One build of one engine folder; a context manager that holds the lock.

    Args:
        target: the engine folder.
        reporter: receives a note if this has to wait for another build.

    Raises:
        EngineFolderError: the target is a file, or a folder with other content.
    """

    def __init__(self, target: Path, reporter: Reporter) -> None:
        self.target = target.resolve()  # resolves a link, which could not be exchanged
        if not self.target.name:
            raise EngineFolderError(f"{self.target} cannot be an engine folder.", fix="Give a folder with --output.")
        self.staging = self.target.with_name(f".{self.target.name}.building")
        self._retired = self.target.with_name(f".{self.target.name}.old")
        self._lock_path = self.target.with_name(f".{self.target.name}.lock")
        self._reporter = reporter
        self._held = contextlib.ExitStack()
        self._damage: dict[str, str] = {}
        self.previous: Manifest | None = None

    def __enter__(self) -> FolderTransaction:
        """Take the lock, finish an interrupted exchange, and open the staging folder."""
        if self.target.is_file():
            raise EngineFolderError(f"{self.target} is a file.", fix="Give a folder with --output.")
        with self._explained():
            self._held.enter_context(locked(self._lock_path, on_wait=self._say_that_it_waits))
        try:
            self._open()
        except BaseException:
            self._held.close()
            raise
        return self

    def _open(self) -> None:
        if self._retired.exists():
            if self.target.exists():
                shutil.rmtree(self._retired)
            else:
                self._retired.rename(self.target)
        if self.target.exists() and any(self.target.iterdir()):
            if not (self.target / MANIFEST).is_file():
                raise EngineFolderError(
                    f"{self.target} contains files but no {MANIFEST}, so it is not an engine folder.",
                    fix="Choose an empty or new folder with --output.",
                )
            with contextlib.suppress(EngineFolderError):  # a folder from another version is rebuilt
                self.previous = Manifest.load(self.target)
        with self._explained():
            (self.staging / _RECORDS).mkdir(parents=True, exist_ok=True)

    def _explained(self) -> AbstractContextManager[None]:
        return full_disk_explained(self.target, _FULL)

    def _say_that_it_waits(self, holder: str) -> None:
        self._reporter.note(f"another build (process {holder}) is writing {self.target}; waiting for it")

    def peek(self) -> None:
        """Read the folder's manifest, without the lock and without writing anything."""
        if self.target.is_file():
            raise EngineFolderError(f"{self.target} is a file.", fix="Give a folder with --output.")
        with contextlib.suppress(EngineFolderError):
            self.previous = Manifest.load(self.target)

    def __exit__(self, *_: object) -> None:
        """Release the lock; unless committed, the staging folder is kept for a later build."""
        self._held.close()

    def find(self, name: str, fields: Mapping[str, Any]) -> FileRecord | None:
        """Return the record of an artifact with exactly these fields, staged or in the old folder.

        An artifact in the old folder is linked into the staging folder.
        """
        key = canonical_key(fields)
        staged = self.staged(name)
        if staged is not None and staged.key == key:
            return staged
        known = None if self.previous is None else self.previous.files.get(name)
        source = self.target / name
        if known is None or known.key != key or self.damage(name):
            return None
        destination = self.path(name)
        destination.unlink(missing_ok=True)
        with self._explained():
            _link(source, destination)
        self._record(name, known)
        return known

    def damage(self, name: str) -> str:
        """Return what is wrong with a file of the old folder: `missing`, `damaged`, or an empty string.

        Its content is hashed unless the same file was hashed before, see `remembered_sha256`.
        """
        if name not in self._damage:
            known, path = (self.previous.files if self.previous else {})[name], self.target / name
            if not path.is_file():
                self._damage[name] = "missing"
            elif path.stat().st_size != known.size:
                self._damage[name] = "damaged"
            else:
                self._damage[name] = "damaged" if remembered_sha256(path) != known.sha256 else ""
        return self._damage[name]

    def staged(self, name: str) -> FileRecord | None:
        """Return the record of an intact artifact in the staging folder."""
        record_path = self._record_path(name)
        path = self.staging / name
        if not record_path.is_file() or not path.is_file():
            return None
        try:
            found = record(FileRecord, unsealed(read_json(record_path)))
        except (OSError, ValueError):  # damaged, or from another version
            return None
        whole = path.stat().st_size == found.size and remembered_sha256(path) == found.sha256
        return found if whole else None

    def place(self, name: str, fields: Mapping[str, Any], write: Callable[[Path], Written | None]) -> FileRecord:
        """Write an artifact.

        Args:
            name: path within the folder.
            fields: everything that it depends on.
            write: writes to the given path; may return what it knows about the file.

        Returns:
            The record, which is also stored in the staging folder for a later build.

        Raises:
            DiskFullError: the disk is full.
        """
        path = self.path(name)
        self._record_path(name).unlink(missing_ok=True)
        started = time.monotonic()
        reset_peak_memory()
        with self._explained(), whole_file(path) as partial:
            known = write(partial) or Written()
            digest = known.sha256 or sha256_file(partial)
        seconds, peak = time.monotonic() - started, known.peak_bytes or peak_memory()
        made = FileRecord(digest, path.stat().st_size, canonical_key(fields), dict(fields), seconds, peak)
        self._record(name, made)
        return made

    def path(self, name: str) -> Path:
        """Return the staging path of an artifact, and create its folder."""
        path = self.staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def discard(self) -> None:
        """Discard the staged artifacts."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def commit(self, manifest: Manifest, extra: Mapping[str, Any]) -> None:
        """Turn the staged artifacts into the engine folder.

        Args:
            manifest: the table of contents; unlisted files are removed.
            extra: JSON documents by name; they are written next to the manifest, and sealed like it.
        """
        with self._explained():
            for name, document in extra.items():
                write_json(self.staging / name, sealed(document))
            manifest.write(self.staging)
        kept = {*manifest.files, *extra, MANIFEST}
        for path in sorted(self.staging.rglob("*"), reverse=True):
            if path.is_file() and str(path.relative_to(self.staging)) not in kept:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        put_in_place(self.staging, self.target, self._retired)

    def _record_path(self, name: str) -> Path:
        return self.staging / _RECORDS / f"{name.replace('/', '__')}.json"

    def _record(self, name: str, made: FileRecord) -> None:
        with self._explained():
            write_json(self._record_path(name), sealed(asdict(made)))


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, destination)
