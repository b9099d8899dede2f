from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from infid_engines import text_files
from infid_engines.errors import InputError
from infid_engines.text_files import read_json, read_text, without_marks

TEXT = "a photo of Zoë\nat the sea 😀"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode("utf-16"),
        TEXT.encode() + b"\0\0\0",
        (TEXT + "\0").encode("utf-16"),
        codecs.BOM_UTF8 + TEXT.replace("\n", "\n\ufeff").encode(),  # concatenated files
    ],
    ids=["plain", "mark", "utf-16", "utf-16-be", "utf-32", "utf-32-be", "crlf", "cr", "nul", "utf-16-nul", "joined"],
)
def test_what_an_editor_adds_changes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == TEXT


def test_marks_go_from_the_beginning_of_lines_alone() -> None:
    assert without_marks("\ufeff\ufeffa\n\ufeffb\ufeffc") == "a\nb\ufeffc"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Zoë".encode("latin-1"), "cannot be read"),
        ("ab".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (codecs.BOM_UTF16_LE + b"a", "cannot be read"),
        (b"x" * 101, "larger than"),
        (None, "No such file"),
    ],
    ids=["latin-1", "utf-16-without-mark", "cut", "large", "missing"],
)
def test_what_is_no_text_is_rejected(
    tmp_path: Path, content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MOST_BYTES", 100)
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_text(path, fix="Save it.")
    assert raised.value.fix == "Save it."


def test_a_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        read_text(tmp_path)


def test_json_may_have_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in ('{"a": "ë"}'.encode("utf-8-sig"), '{"a": "ë"}'.encode("utf-16"), b'{"a": "\xc3\xab"}\0'):
        path.write_bytes(content)
        assert read_json(path) == {"a": "ë"}
    for content in (b"{", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not JSON"):
            read_json(path)
