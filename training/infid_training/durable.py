"""Files and folders that are whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
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
        InputError: the disk is full.
    """
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
            _flush(target.parent)
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
