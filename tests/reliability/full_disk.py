"""A disk that becomes full at a chosen write: system calls that need space are counted, and fail from that write on.

Files under the watched folder are opened by Python's own implementation of `open`, so that each of their writes is a
call of `os.write`. A writer in Rust counts as one write, and fails as on a full disk.
"""

from __future__ import annotations

import _pyio
import builtins
import errno
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError

_ONE_PATH = ("mkdir",)
_TWO_PATHS = ("link", "rename", "replace")
_NEEDS_NO_SPACE = ("rename", "replace", "fsync")  # these succeed on a full disk, except for the chosen one
_ON_DESCRIPTOR = {
    **dict.fromkeys(("write", "pwrite", "ftruncate", "fsync", "posix_fallocate", "sendfile"), 0),
    "copy_file_range": 1,
}


class FullDisk:
    """Counts the writes under a folder.

    Args:
        folder: watched, with everything in it.
        fails_at: number of the write that fails, from 1, as do all later ones that need space; 0 is none.
    """

    def __init__(self, folder: Path, fails_at: int = 0) -> None:
        self._folder = str(folder.resolve())
        self._fails_at = fails_at
        self.points: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count within the block."""
        with ExitStack() as stack:
            for name in (*_ONE_PATH, *_TWO_PATHS, *_ON_DESCRIPTOR, "open"):
                stack.enter_context(patch.object(os, name, self._counted(name, getattr(os, name))))
            opened = self._open(io.open)
            for module, name in ((builtins, "open"), (io, "open"), (tarfile, "bltn_open")):
                stack.enter_context(patch.object(module, name, opened))
            for module in (safetensors.torch, safetensors.numpy):
                stack.enter_context(patch.object(module, "serialize_file", self._serializer(module.serialize_file)))
            yield

    def _point(self, what: str, path: Any) -> None:
        """Count a write, and fail it if the disk is full."""
        self.points.append(f"{what} {os.path.basename(os.fsdecode(path))}")
        number = len(self.points)
        if number == self._fails_at or (0 < self._fails_at < number and what not in _NEEDS_NO_SPACE):
            _fail(os.fsdecode(path))

    def _watches(self, path: Any) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return os.path.abspath(os.fsdecode(path)).startswith(self._folder)

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            place = 1 if name in _TWO_PATHS else _ON_DESCRIPTOR.get(name, 0)
            makes = name != "open" or arguments[1] & os.O_CREAT
            if makes and self._watches(arguments[place]) and options.get("dir_fd") is None:
                where = arguments[place]
                self._point(name, os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else where)
            return real(*arguments, **options)

        return called

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            writes = any(letter in mode for letter in "wax+")
            if writes and (isinstance(file, int | str | bytes | os.PathLike)) and self._watches(file):
                return _pyio.open(file, mode, *arguments, **options)
            return real(file, mode, *arguments, **options)

        return opened

    def _serializer(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def serialize_file(tensors: Any, path: Any, metadata: Any = None, **options: Any) -> Any:
            if self._watches(path):
                try:
                    self._point("serialize", path)
                except OSError as error:
                    raise SafetensorError(
                        f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
                    ) from error
            return real(tensors, path, metadata=metadata, **options)

        return serialize_file


def _fail(path: str) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
