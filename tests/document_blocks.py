"""The documents of the repository, and their blocks of commands and code.

The line before such a block has a comment that says how it is tested: a `<!-- run -->` block runs on the
demo model, `<!-- tested by: FILE -->` names the test that runs it, and `<!-- needs: WHAT -->` says what a test lacks.
All commands must parse, and all Python must compile and only use names that exist.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/README.md"]
# Allowed values of `needs`.
NEEDS = ("a GPU", "weights", "minutes", "a package index", "a checkout")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (run|needs|tested by)(?:: ([^>]+))? -->\n$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Args:
        document: the file that contains it.
        line: its first line, counted from 1.
        language: `sh`, `python`, `cpp` or `cmake`.
        text: its content.
        mark: `run`, `needs`, `tested by`, or empty where there is no comment before it.
        detail: the rest of the comment.
    """

    document: Path
    line: int
    language: str
    text: str
    mark: str
    detail: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of every command in an `sh` block."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def blocks(document: Path) -> list[Block]:
    """Return the blocks of commands and code in a document."""
    text = document.read_text()
    found = []
    for fence in _FENCE.finditer(text):
        if fence[1] in ("sh", "python", "cpp", "cmake"):
            mark = _MARK.search(text, 0, fence.start())
            kind, detail = (mark[1], mark[2] or "") if mark else ("", "")
            line = text.count("\n", 0, fence.start()) + 2
            found.append(Block(document, line, fence[1], fence[2], kind, detail))
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
