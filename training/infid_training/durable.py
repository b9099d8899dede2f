"""Files and folders that are whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from infid_engines.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write a folder that must not exist yet: a temporary sibling, renamed once all of it is on the disk.

    Args:
        target: where it will be.

    Yields:
        The temporary folder; what fails inside the block removes it.

    Raises:
        InputError: it exists, or the disk is full.
    """
    if target.exists():
        raise InputError(f"{target} exists already.", fix="Remove it, or give another folder.")
    partial = target.with_name(f".{target.name}.partial")
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
            except BaseException:  # or the same command would find it and refuse to go on
                target.rename(partial)
                raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Write or replace a file in the same way; see `whole_folder`."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with full_disk_explained(target):
            yield partial
            _flush(partial)
            partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold a lock, which the process's end gives back; its file is gone afterwards.

    Args:
        path: of the lock's file; its folder is made.
        busy: said if another process holds the lock; empty waits for it instead.

    Raises:
        InputError: another process holds it, or the folder cannot be written to.
    """
    with contextlib.ExitStack() as held:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(path.open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError as error:
                raise InputError(busy, fix="Wait for it, or give another folder.") from error
            except OSError as error:
                raise InputError(
                    f"{path.parent} cannot be written to ({error.strerror}).", fix="Choose another folder."
                ) from error
            # whoever held it has removed its file: the lock is one only if it is of the file that is there now
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
        held.callback(path.unlink, missing_ok=True)
        yield


def remove_folder(folder: Path) -> None:
    """Remove a folder of which no half must ever be seen under its name."""
    partial = folder.with_name(f".{folder.name}.partial")
    folder.rename(partial)
    shutil.rmtree(partial)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed process left in a folder."""
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def full_disk_explained(target: Path) -> Iterator[None]:
    """Turn "no space left" into a sentence that says how much is free."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors passes the system's error on as text
        codes = [f"os error {code})" for code in _FULL]
        full = error.errno in _FULL if isinstance(error, OSError) else any(code in str(error) for code in codes)
        if not full:
            raise
        existing = next(parent for parent in target.absolute().parents if parent.exists())
        raise InputError(
            f"The disk that holds {target} is full ({shutil.disk_usage(existing).free / 1e9:.2f} GB free).",
            fix="Free some space and run the same command again; nothing was left half-written.",
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
