from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import document_tables as tables


def test_the_tables_are_drawn_from_the_results() -> None:
    stale = [path.name for path, text in tables.drawn().items() if text != path.read_text()]
    assert stale == [], "run `python benchmarks/document_tables.py draw`"


def test_another_result_draws_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for result in tables.RESULTS.glob("*.json"):
        (tmp_path / result.name).write_text(result.read_text().replace('"passed": true', '"passed": false'))
    before = "".join(tables.drawn().values()).count("FAILED")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "".join(tables.drawn().values()).count("FAILED") > before


@pytest.mark.parametrize(
    "places", ["", "<!-- table: parity -->\n<!-- end -->\n" * 2, "<!-- table: x -->\n<!-- end -->\n"]
)
def test_a_table_has_one_place(places: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text(places)
    monkeypatch.setattr(tables, "documents", lambda: [tmp_path / "page.md"])
    monkeypatch.setattr(tables, "tables", lambda: {"parity": "| a |"})
    with pytest.raises(ValueError, match="have places for"):
        tables.drawn()
