"""Safetensors files: read, rejected, sealed and written as the Python packages do."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from both import cpp_sentences, python_sentences
from cpp_library import Probe
from mutations import damaged
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from infid_engines.tensor_seal import array_seal
from infid_export.runtime.person import Person

JSON = "Error while deserializing header: invalid JSON in header: "


def content() -> bytes:
    halves, nothing = np.arange(6, dtype=np.float16).reshape(2, 3), np.ones((2, 0), np.float32)
    tensors = {"b": halves, "a": nothing, "é": np.array(5, np.int64), "i": np.arange(4, dtype=np.int32)}
    tensors["c"] = np.arange(5, dtype=np.int8)
    return save(tensors, metadata={"name": 'Ünïcode \\ " \n', "x": "1"})


def python_line(path: Path) -> str:
    """Return what the probe prints for a file that the library reads."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:
        return f"! {error}"
    layouts = {name: [each.dtype.name, list(each.shape)] for name, each in tensors.items()}
    return json.dumps([metadata, layouts, array_seal(metadata, tensors)], sort_keys=True)


def lines(folder: Path, contents: list[bytes], cpp_probe: Probe) -> list[tuple[str, str]]:
    """Return for each content what Python and C++ make of it."""
    folder.mkdir(exist_ok=True)
    paths = [folder / str(index) for index in range(len(contents))]
    for path, each in zip(paths, contents, strict=True):
        path.write_bytes(each)
    found = cpp_probe("safetensors", *paths).stdout.splitlines()
    as_python = [line if line[0] == "!" else json.dumps(json.loads(line), sort_keys=True) for line in found]
    return list(zip(map(python_line, paths), as_python, strict=True))


def made(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_a_file_is_read_as_in_python(tmp_path: Path, cpp_probe: Probe) -> None:
    ((expected, found),) = lines(tmp_path / "files", [content()], cpp_probe)
    assert expected[0] != "!"
    assert found == expected


def test_cut_off_files_have_the_same_sentences(tmp_path: Path, cpp_probe: Probe) -> None:
    whole = content()
    for expected, found in lines(tmp_path / "files", [whole[:end] for end in range(len(whole))], cpp_probe):
        assert found == expected
        assert found[0] == "!"


SAME = [
    made({}), made({}, b"1"), made({"a": tensor()}, b"1234"), made({"a": tensor()}, b"123"),
    made({"a": tensor()}, b"12345"),
    made({}, length=10**8), made({}, length=10**8 + 1), made({}, length=2**64 - 1), made({}, length=2**63),
    made({}, length=3),
    made({"a": tensor(shape=[2])}, b"1234"), made({"a": tensor(offsets=[4, 8])}, b"12345678"),
    made({"a": tensor(offsets=[4, 0])}), made({"a": tensor(shape=[2**40, 2**40])}), made({"a": tensor(shape=[2**62])}),
    made({"a": tensor(), "b": tensor(offsets=[8, 12])}, b"123456789012"),
    made({"b": tensor(offsets=[4, 8]), "a": tensor()}, b"12345678"),
    made({"a": tensor(), "b": tensor(offsets=[2, 6])}, b"123456"),
    made({"a": tensor("I8", [0], [0, 0]), "b": tensor()}, b"1234"), made({"a": tensor(shape=[])}, b"1234"),
    made({"a": tensor(shape=[0, 2**20], offsets=[0, 0])}), made({"a": tensor(extra=1)}, b"1234"),
    made({"__metadata__": None, "a": tensor()}, b"1234"), made({"__metadata__": {}}),
    made(b'{"__metadata__":{"a":"\\u00e9"}}'),
    made(b"  {}  "), made({"a": tensor("F16", [2])}, b"1234"), made({"a": tensor("I64", [1], [0, 8])}, b"12345678"),
]  # fmt: skip
INVALID = [
    made(b""), made(b"{"), made(b"[]"), made(b"null"), made(b"x"), made(b"{} x"), made(b"\xef\xbb\xbf{}"),
    made({"a": 1}),
    made({"a": {}}), made({"a": tensor("F33")}), made({"a": tensor(shape=[-1])}), made({"a": tensor(shape=1)}),
    made({"a": tensor(shape=[1.0])}, b"1234"), made({"a": tensor(shape=[2**64])}, b"1234"),
    made({"a": tensor(offsets=[0])}),
    made({"a": tensor(offsets=[0, 4, 8])}), made({"a": tensor(offsets="x")}), made({"__metadata__": {"a": 1}}),
    made({"__metadata__": 1}), made({"__metadata__": []}), made(b'{"__metadata__":{"\\ud800":"a"}}'),
    made({"\ud800": tensor()}),
    made(b'{"__metadata__":{},"__metadata__":{}}'), made(b'{"x":' + b"[" * 3000), made(b'{"a":NaN}'),
    made({"a": tensor(dtype=3)}),
    made(b'{"a":{"shape":[1],"dtype":"F32","dtype":"F32","data_offsets":[0,4]}}', b"1234"),
]  # fmt: skip


def test_wrong_layouts_have_the_same_sentences(tmp_path: Path, cpp_probe: Probe) -> None:
    for index, (expected, found) in enumerate(lines(tmp_path / "files", SAME, cpp_probe)):
        assert found == expected, SAME[index]


def test_invalid_headers_are_rejected_as_such(tmp_path: Path, cpp_probe: Probe) -> None:
    """The words behind the colon are those of another JSON reader."""
    for index, (expected, found) in enumerate(lines(tmp_path / "files", INVALID, cpp_probe)):
        assert expected.startswith(f"! {JSON}"), INVALID[index]
        assert found.startswith(f"! {JSON}") or "has the type F33, which is not supported" in found, INVALID[index]


def test_a_header_that_is_not_utf_8_is_rejected(tmp_path: Path, cpp_probe: Probe) -> None:
    for text in (b"\xff{}", b'{"\xed\xa0\x80":1}', b'{"\xc3'):
        ((expected, found),) = lines(tmp_path / "files", [made(text)], cpp_probe)
        for each in (expected, found):
            assert each.startswith("! Error while deserializing header: invalid UTF-8 in header: ")


def test_unsupported_types_and_repeated_names_are_rejected(tmp_path: Path, cpp_probe: Probe) -> None:
    """Python's library reads these."""
    wide = made({"w": tensor("F64", [1], [0, 8])}, b"12345678")
    twice = made(b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}", b"1234")
    found = [each for _, each in lines(tmp_path / "files", [wide, twice], cpp_probe)]
    assert found == ["! tensor `w` has the type F64, which is not supported", f"! {JSON}duplicate field `a`"]


def test_damaged_files_are_never_read_differently(tmp_path: Path, cpp_probe: Probe) -> None:
    random, whole = Random(5), content()
    cases = [damaged(random, whole) for _ in range(300)]
    same = 0
    for expected, found in lines(tmp_path / "files", cases, cpp_probe):
        same += found == expected
        assert found[0] == "!" or found == expected
        assert found[0] != "!" or expected[0] == "!" or "not supported" in found or "duplicate" in found
    assert same > 100


@pytest.mark.parametrize("name", ["", "Eileen", "Ünïcode 🙂", '"\\\b\f\n\r\t\0\x1f\x7f', "a" * 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_written_file_has_the_bytes_of_pythons(tmp_path: Path, name: str, dtype: type, cpp_probe: Probe) -> None:
    random = np.random.default_rng(1)
    tokens, keys, values = (random.standard_normal((2, 3, width)).astype(dtype) for width in (5, 4, 4))
    person = Person(tokens, keys, values, "m", name)
    person.save(tmp_path / "python.safetensors")
    for _ in range(2):  # the second time it replaces the first
        run = cpp_probe("person", tmp_path / "python.safetensors", tmp_path / "cpp.safetensors")
        assert json.loads(run.stdout) == [name, "m"]
    assert (tmp_path / "cpp.safetensors").read_bytes() == (tmp_path / "python.safetensors").read_bytes()
    assert (tmp_path / "cpp.safetensors").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cpp.safetensors", "python.safetensors"]


def test_files_that_cannot_be_written_have_the_same_sentences(tmp_path: Path, cpp_probe: Probe) -> None:
    person = Person(np.ones((2, 1, 1), np.float32), np.ones((2, 1, 1), np.float32), np.ones((2, 1, 1), np.float32), "m")
    person.save(tmp_path / "p")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "missing" / "p", tmp_path / "folder", tmp_path / "p" / "q", tmp_path / ("x" * 300)):
        expected = python_sentences(lambda target=target: person.save(target))  # type: ignore[misc]
        assert expected is not None
        assert cpp_sentences(cpp_probe("person", tmp_path / "p", target)) == expected
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "p"]
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_has_the_same_sentence(tmp_path: Path, small_disk: Path, cpp_probe: Probe) -> None:
    wide = np.ones((2, 64, 256), np.float32)
    person = Person(wide, wide, wide, "m")
    person.save(tmp_path / "p")
    (small_disk / "out").write_text("the old file")
    expected = python_sentences(lambda: person.save(small_disk / "out"))
    assert expected is not None
    assert "is full (0.00 GB free)" in expected[0]
    assert cpp_sentences(cpp_probe("person", tmp_path / "p", small_disk / "out")) == expected
    assert [each.name for each in small_disk.iterdir()] == ["out"]
    assert (small_disk / "out").read_text() == "the old file"
