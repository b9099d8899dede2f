"""Writes files and folders atomically: they are complete or absent, whatever happens. No other module does this.

Content goes into a temporary sibling, `.<name>.partial`, which is flushed to disk and renamed. A killed process leaves
at most such a sibling, which the next process replaces or `clear_leftovers` removes. A full disk becomes one sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infid_engines.errors import BusyError, DiskFullError, InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "Free some space and run the same command again; no partial files were left."
_ENDING = ".partial"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextlib.contextmanager
def whole_file(target: Path, private: bool = False) -> Iterator[Path]:
    """Write or replace a file atomically: a temporary sibling is renamed once it is flushed to disk.

    Args:
        target: final path.
        private: make the file readable only by its owner, and give the sibling a unique name: for personal data, and
            for files that several processes may write at once.

    Yields:
        Path of the sibling; an exception in the block removes it.

    Raises:
        DiskFullError: the disk is full.
    """
    with full_disk_explained(target):
        partial = _own_sibling(target) if private else partial_of(target)
        try:
            yield partial
            _flush(partial)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write a folder that must not exist yet; see `whole_file`.

    Args:
        target: final path.

    Yields:
        The temporary folder; an exception in the block removes it.

    Raises:
        InputError: the target exists.
        DiskFullError: the disk is full.
    """
    if target.exists():
        raise InputError(f"{target} already exists.", fix="Remove it, or give another folder.")
    partial = partial_of(target)
    try:
        with full_disk_explained(target):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for path in partial.rglob("*"):
                _flush(path)
            _flush(partial)
            partial.rename(target)
            try:
                _flush(target.parent)
            except BaseException:  # otherwise the next run would find it and stop
                target.rename(partial)
                raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_in_place(staging: Path, target: Path, retired: Path) -> None:
    """Move a finished folder to the target; the old target is removed.

    Args:
        staging: the finished folder, on the target's disk.
        target: path that readers use.
        retired: temporary path of the old target, on systems that cannot exchange two folders.
    """
    if not target.exists():
        staging.rename(target)
    elif _exchange(staging, target):
        shutil.rmtree(staging)
    else:
        target.rename(retired)
        staging.rename(target)
        shutil.rmtree(retired)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no partial content is ever visible under its name."""
    partial = partial_of(folder)
    folder.rename(partial)
    shutil.rmtree(partial)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder."""
    for path in folder.glob(f".*{_ENDING}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def partial_of(target: Path) -> Path:
    """Return the temporary sibling that a file or folder is written to."""
    return target.with_name(f".{target.name}{_ENDING}")


def temporary_beside(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a scratch folder on the same disk, so that files can be linked into it and folders moved out of it."""
    return tempfile.TemporaryDirectory(prefix=f".{folder.name}.scratch-", dir=folder.absolute().parent)


@contextlib.contextmanager
def locked(path: Path, busy: str = "", on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Hold a lock, which is released when the process ends; its file is removed afterwards.

    Args:
        path: path of the lock file; its folder is created.
        busy: the error if another process holds the lock; empty waits for it instead.
        on_wait: called before a wait with the id of the process that holds the lock.

    Raises:
        BusyError: another process holds it, and `busy` is set.
        InputError: the folder cannot be written to.
        DiskFullError: the disk is full.
    """
    with contextlib.ExitStack() as held:
        while True:
            try:
                with full_disk_explained(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            except OSError as error:
                raise InputError(
                    f"{path.parent} cannot be written to ({error.strerror}).", fix="Choose another folder."
                ) from error
            held.callback(os.close, descriptor)
            _take(descriptor, busy, on_wait)
            # the previous holder has removed its file: the lock counts only if it is on the current file
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
        held.callback(path.unlink, missing_ok=True)
        with full_disk_explained(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield


def _take(descriptor: int, busy: str, on_wait: Callable[[str], None]) -> None:
    """Lock an open file, immediately or after a wait.

    Raises:
        BusyError: another process holds the lock, and `busy` is set, so this does not wait.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if busy:
            raise BusyError(busy, fix="Wait for it, or give another path.") from error
        on_wait(os.pread(descriptor, 32, 0).decode().strip() or "unknown")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def full_disk_explained(target: Path, fix: str = _AGAIN) -> Iterator[None]:
    """Turn "no space left" into a sentence with the free space. In nested blocks, the outermost one applies.

    Args:
        target: the path that is written.
        fix: what to do.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        existing = next(parent for parent in target.absolute().parents if parent.exists())
        free = shutil.disk_usage(existing).free
        raise DiskFullError(f"The disk with {target} is full ({free / 1e9:.2f} GB free).", fix=fix) from error


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # safetensors passes the system's error on as text; its class is matched by name, which avoids an import
    passed_on = type(error).__name__ == "SafetensorError" and any(f"os error {code})" in str(error) for code in _FULL)
    return passed_on or isinstance(error, DiskFullError)


def _own_sibling(target: Path) -> Path:
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=_ENDING)
    os.close(descriptor)
    return Path(name)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically; return False if the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(renameat2(*arguments) == 0)
