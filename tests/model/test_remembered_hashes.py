from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from infid_export.model.sources import remembered_sha256


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"weights")
    return tmp_path / "weights"


SHA256 = hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", "/dev/null/me"])
def test_hashing_does_without_a_cache(file: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    assert [remembered_sha256(file) for _ in range(2)] == [SHA256, SHA256]


def test_hashing_does_without_a_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert remembered_sha256(file) == SHA256


@pytest.mark.parametrize("content", ["", "null", "[]", "{", "3"])
def test_a_damaged_cache_is_written_anew(file: Path, content: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "infid-export").mkdir()
    cache = tmp_path / "infid-export/hashes.json"
    cache.write_text(content)
    assert remembered_sha256(file) == SHA256
    assert SHA256 in cache.read_text()
