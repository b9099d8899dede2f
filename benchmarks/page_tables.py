"""Tables in Markdown, and their places in a page: `<!-- table: NAME -->` … `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def with_tables(pages: Sequence[Path], tables: Mapping[str, str]) -> dict[Path, str]:
    """Return the text of every page with the tables in their places.

    Args:
        pages: all pages that have places for these tables.
        tables: tables by name.

    Raises:
        ValueError: a table has no place or several, or a place names no table.
    """
    texts = {page: page.read_text() for page in pages}
    places = [match[2] for text in texts.values() for match in _PLACE.finditer(text)]
    if sorted(places) != sorted(tables):
        raise ValueError(f"the documents have places for {sorted(places)}, the tables are {sorted(tables)}")
    return {
        page: _PLACE.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", text)
        for page, text in texts.items()
    }
