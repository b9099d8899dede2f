"""Remembered hashes: a file is hashed again only if the file system says that it may have changed.

Hashing a 10 GB checkpoint would take longer than an unchanged rebuild should.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from infid_engines.atomic_files import whole_file
from infid_engines.errors import DiskFullError, InputError
from infid_engines.manifest import sha256_file

# File systems store times in steps, from a few milliseconds (ext4) to two seconds (FAT). A file that was changed within
# the last step may change again without a new time.
_STEP_NS = 2_000_000_000
_KEPT = 2000  # the newest hashes to keep: an engine folder has about 20 files, and a rebuild replaces them


def remembered_sha256(path: Path) -> str:
    """Return a file's sha256, and hash it only if the same file was not hashed before.

    A file counts as the same while its device, inode, size, mtime and ctime are the same. Programs can set the mtime
    back (`cp -p`, `rsync -t`, `touch -r`), but not the ctime: only a changed clock, or a network file system without
    ctime, can hide a change. The hashes are stored in the user's cache folder, and can be deleted at any time. If that
    folder is not writable, files are hashed each time.

    Raises:
        InputError: the file cannot be read, or changes while it is read.
    """
    try:
        before = _identity(path)
        known = _known()
        digest = known.get(before)
        if isinstance(digest, str):
            return digest
        digest = sha256_file(path)
        after, status = _identity(path), path.stat()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}).", fix="Check the path and its permissions."
        ) from error
    if after != before:
        raise InputError(f"{path} changed while it was read.", fix="Run the command again when nothing writes to it.")
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _STEP_NS:
        with contextlib.suppress(OSError, RuntimeError, DiskFullError):
            _remember({**_known(), before: digest})
    return digest


def _identity(path: Path) -> str:
    status = path.stat()
    return ":".join(
        str(part) for part in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infid-export" / "hashes.json"


def _known() -> dict[str, object]:
    """Return the remembered hashes by identity; none if the cache is missing or broken."""
    try:
        known = json.loads(_cache().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, object]) -> None:
    """Replace the cache."""
    cache = _cache()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(cache, private=True) as partial:  # several processes may write it at once
        partial.write_text(json.dumps(dict(list(known.items())[-_KEPT:])))
