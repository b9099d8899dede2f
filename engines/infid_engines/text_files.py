"""Reads text from users: captions, prompts, JSON. A single reader treats what editors add the same everywhere.

Editors start files with a byte order mark, write UTF-16, and use their system's line endings; tools pad with NULs. A
mark that is not removed becomes three tokens of a prompt.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from infid_engines.errors import InputError

MOST_BYTES = 16_000_000
_MARK = "\ufeff"
# UTF-32's little-endian mark begins with UTF-16's.
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_AS_UTF8 = "Save it as plain text in UTF-8."


def read_text(path: Path, fix: str = _AS_UTF8, name: str = "") -> str:
    r"""Read a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: path of the file.
        fix: what to do if it cannot be read.
        name: name of the file for messages; empty uses its path.

    Returns:
        The text without byte order marks and trailing NULs; lines end in `\n`.

    Raises:
        InputError: it cannot be read, is larger than `MOST_BYTES`, or has another encoding.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 1_000_000} MB")
        return _decoded(content)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{name or path} cannot be read ({what}).", fix=fix) from error


def read_json(path: Path, fix: str = _AS_UTF8) -> Any:
    """Read a JSON file with `read_text`.

    Raises:
        InputError: see `read_text`; or it is not JSON.
    """
    text = read_text(path, fix)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}).", fix=fix) from error


def without_marks(text: str) -> str:
    """Return a text without byte order marks at the start of lines, as from `"$(cat prompt.txt)"` in a shell."""
    return re.sub(f"^{_MARK}+", "", text, flags=re.MULTILINE)


def _decoded(content: bytes) -> str:
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8")
    text = content.decode(encoding).rstrip("\0")
    if "\0" in text:
        raise ValueError("it contains NUL characters, like UTF-16 without a byte order mark")
    return without_marks(text.replace("\r\n", "\n").replace("\r", "\n"))
