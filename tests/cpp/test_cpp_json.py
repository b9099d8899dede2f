"""JSON as Python reads and writes it, on which the seals of documents rest."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from cpp_library import Probe
from mutations import damaged_json, json_text

from infid_engines.documents import read_json

TEXTS = (
    b"", b" ", b"{", b"[", b"[1,", b"[1 2]", b'{"a":1,}', b'{"a" 1}', b"{1:2}", b'{"a":', b'{"a":1', b"{,}", b"[,]",
    b"]",
    b'"a', b'"\\', b'"\\q"', b'"\\u12"', b'"\\u12', b'"\\uD83D\\uDE00"', b'"\\ud83d\\u0041x"', b'"\\ud83d\\uzzzzx"',
    b'"\\ud800"', b'"\\ud800\\', b'"\x01"', b'"a\nb"', b"NaN", b"Infinity", b"[-Infinity]", b"-", b"--1", b"01", b"-0",
    b"-0.0", b"1.", b"1.e3", b"1e", b"1e+", b"1E5", b".5", b"+1", b"1e999", b"-1e999", b"1e-999", b"-1e-999", b"5e-324",
    b"1e-320", b"2.2250738585072011e-308", b"1" * 400 + b".5", b"1" * 400 + b".5e-390", b"0." + b"0" * 400 + b"1e390",
    b"123456789012345678901234567890", b"1" * 4301, b"-" + b"2" * 4300, b"1 2", b"\xef\xbb\xbf{}", b"\xef\xbb\xbf\xff",
    b"\xff", b'"\xe2\x82"', b'"\xe2\x82', b'"\xc0\x80"', b'"\xf0\x9f\x98x"', b'"\xed\xa0\x80"', b'"\xed\xa0',
    b'"\xe0\x80\x80"',
    b'"\xf4\x90\x80\x80"', b'"\xf5aaa"', "\"é€🙂\u2028\x7f\"".encode(), b'"\\b\\f\\n\\r\\t\\/\\"\\\\"', b"true", b"tru",
    b"null", b"nul", b'{"b":1,"a":{"z":[],"y":{}},"b":2}', b'\n\n  {"a":\n "\xc3\xa9" x}', b"[" * 20_000,
    b"[0.1,1e22,1e16,1e15]",
    b'{"a":' * 20_000, b"[1e-5,0.0001,123456.789,1.7976931348623157e308]",
    '{"é": 1, "z": 2, "🙂": 3, "\uffff": 4}'.encode(),
    b'"unfinished \xc3\xa9\n', b"\x0b1", b"1    \x00", b'"\\u00e9\\u0000\\u001f"', b"[true,false,null]", b"{}x",
)  # fmt: skip


def expected(path: Path) -> str:
    try:
        return "= " + json.dumps(read_json(path), sort_keys=True, separators=(",", ":"))
    except ValueError as error:
        return f"! {error}"


def compare(folder: Path, contents: list[bytes], cpp_probe: Probe) -> None:
    paths = [folder / str(index) for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    found = cpp_probe("canonical_json", *paths).stdout.splitlines()
    assert len(found) == len(paths)
    for content, path, line in zip(contents, paths, found, strict=True):
        assert line == expected(path), content[:200]


def test_odd_texts_are_read_or_rejected_as_in_python(tmp_path: Path, cpp_probe: Probe) -> None:
    compare(tmp_path, list(TEXTS), cpp_probe)


def test_numbers_are_written_as_in_python(tmp_path: Path, cpp_probe: Probe) -> None:
    random = Random(1)
    numbers = [random.choice((-1, 1)) * random.random() * 10.0 ** random.randint(-310, 300) for _ in range(2000)]
    compare(tmp_path, [json.dumps([*numbers, 0.1, 1e16, 9007199254740993.0, 1e-4, 1e-5]).encode()], cpp_probe)


def test_damaged_documents_are_read_or_rejected_as_in_python(tmp_path: Path, cpp_probe: Probe) -> None:
    random = Random(2)
    document = {"a": [1, 2.5, "x", None, True], "é": {"b": "text", "c": {"d": [], "e": {}}}, "seal": "0" * 64}
    contents = [json_text(random, damaged_json(random, document)) for _ in range(400)]
    as_utf8 = [content for content in contents if b"\0" not in content[:4]]  # Python reads UTF-16 and UTF-32 too
    compare(tmp_path, as_utf8, cpp_probe)


def test_what_is_no_plain_file_is_rejected_as_in_python(tmp_path: Path, cpp_probe: Probe) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "it's \n"):
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            read_json(path)
        assert cpp_probe("canonical_json", path).stdout == f"! {caught.value}\n"
