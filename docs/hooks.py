"""Hooks of the site: the files outside docs/ that its pages link to become part of it, under repository/.

A link that works on a forge (`../CONTRIBUTING.md` from a page here) so works on the site as well. And no page may load
anything from another host.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_DOCS, _OUTSIDE = "docs/", "repository/"
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s#:]+)(#[^)\s]*)?", re.MULTILINE)

_LOADED = re.compile(r"""<(?:script|img|iframe|link(?![^>]*rel="canonical"))\b[^>]*(?:src|href)=["']?(?:https?:)?//""")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what the pages link to outside docs/."""
    for path in linked_outside():
        files.append(File.generated(config, f"{_OUTSIDE}{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the site has their files."""
    there = page.file.src_uri
    source = there.removeprefix(_OUTSIDE) if there.startswith(_OUTSIDE) else f"{_DOCS}{there}"

    def on_the_site(match: re.Match[str]) -> str:
        target = _target(source, match[2])
        if target is None:
            return match[0]
        place = target.removeprefix(_DOCS) if target.startswith(_DOCS) else f"{_OUTSIDE}{target}"
        return f"{match[1]}{posixpath.relpath(place, posixpath.dirname(there) or '.')}{match[3] or ''}"

    return _LINK.sub(on_the_site, markdown)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Fail if the page would load something from another host.

    Raises:
        PluginError: names the page and what it would load.
    """
    found = _LOADED.search(output)
    if found is not None:
        raise PluginError(f"{page.file.src_uri} loads {output[found.start() : found.end() + 60]!r} from another host")
    return output


def linked_outside() -> list[str]:
    """Return the files outside docs/ that its pages link to, and those that these link to, from the root."""
    waiting = [f"{_DOCS}{path.relative_to(ROOT / _DOCS).as_posix()}" for path in (ROOT / _DOCS).rglob("*.md")]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        if page.endswith(".md"):
            found = {_target(page, match[2]) for match in _LINK.finditer((ROOT / page).read_text())}
            new = {target for target in found if target is not None} - seen
            seen |= new
            waiting += new
    return sorted(path for path in seen if not path.startswith(_DOCS))


def _target(page: str, link: str) -> str | None:
    """Return the file a link leads to, from the root; None if it leads to no file here."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None
