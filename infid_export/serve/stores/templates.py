"""The templates that clients have made: their settings and previews, and the text streams in a cache."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import whole_file
from infid_engines.documents import read_json, record
from infid_engines.errors import InputError
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import TEMPLATES
from infid_export.runtime.template import Template, TemplateSettings
from infid_export.runtime.template_cache import TemplateCache
from infid_export.serve.http.problems import Problem

_ID = re.compile(r"template_[0-9a-f]{24}")
_SETTINGS = "infid_template"
_MOST = 1000  # their previews are in memory, without a folder
_UNREADABLE = (OSError, KeyError, TypeError, ValueError)  # deleted just now by another server, or not ours


@dataclass(frozen=True)
class TemplateRecord:
    """A template that a client has made.

    Args:
        id: a hash of its settings and its model.
        settings: how it is made.
        nbytes: of its text stream.
        created: seconds since 1970.
        preview: PNG of its own image, with nobody in it.
    """

    id: str
    settings: TemplateSettings
    nbytes: int
    created: int
    preview: bytes


class TemplateShelf:
    """Templates by id. Their text streams are dropped when the budget is used up, and made again on use. For threads.

    Args:
        pipe: makes them.
        budget: bytes of the text streams together.
        folder: where they outlive the process, and where servers share them; None keeps them in memory.

    Raises:
        InputError: the folder cannot be used.
    """

    def __init__(self, pipe: Pipeline, budget: int, folder: Path | None) -> None:
        self.available = all(name in pipe.manifest.graphs for name in TEMPLATES)
        self._pipe, self._folder, self._lock = pipe, folder, threading.Lock()
        self._cache = TemplateCache(pipe, budget, folder) if self.available else None
        self._records: dict[str, TemplateRecord] = {}

    def kept(self, settings: TemplateSettings) -> bool:
        """Return whether a text stream is at hand; none is in a folder that cannot be used just now."""
        with suppress(InputError):
            return self._cache is not None and self._cache.find(settings) is not None
        return False

    def fits(self, settings: TemplateSettings) -> bool:
        """Return whether a text stream can be kept."""
        return self._cache is not None and self._cache.fits(settings)

    def stream(self, settings: TemplateSettings, **watch: Any) -> Template:
        """Return a text stream, from the cache or newly made; see `TemplateCache.get`."""
        return self._required().get(**asdict(settings), **watch)

    def add(self, settings: TemplateSettings, **watch: Any) -> TemplateRecord:
        """Make a template, and keep it until it is deleted.

        Raises:
            Problem: the folder has no graphs for templates, or there are too many.
            InputError: it does not fit into the budget, or cannot be written.
        """
        cache = self._required()
        if len(self.list()) >= _MOST:
            raise Problem(507, f"There are {_MOST} templates already.", "Delete one.", code="no_room")
        template = cache.get(**asdict(settings), **watch)
        preview = io.BytesIO()
        self._pipe.preview(template).save(preview, format="PNG")
        id = f"template_{cache.key(settings)[:24]}"
        made = TemplateRecord(id, settings, template.nbytes, int(time.time()), preview.getvalue())
        if self._folder is None:
            with self._lock:
                self._records[id] = made
        else:
            self._write(self._folder, made)
        return made

    def get(self, id: str) -> TemplateRecord:
        """Return a template.

        Raises:
            Problem: there is none with this id.
        """
        if _ID.fullmatch(id):
            with self._lock, suppress(*_UNREADABLE):
                return self._records[id] if self._folder is None else _read(self._folder / f"{id}.json")
        raise Problem(404, f"There is no template {id[:64]!r}.", "POST one to /v1/templates.", code="not_found")

    def list(self) -> list[TemplateRecord]:
        """Return all templates, the newest first."""
        if self._folder is None:
            with self._lock:
                return list(self._records.values())[::-1]
        found = []
        for path in self._folder.glob("template_*.json"):
            with suppress(*_UNREADABLE):
                found.append(_read(path))
        return sorted(found, key=lambda each: (-each.created, each.id))

    def delete(self, id: str) -> None:
        """Delete a template and its text stream.

        Raises:
            Problem: there is none with this id.
        """
        settings = self.get(id).settings
        self._required().drop(settings)
        if self._folder is None:
            with self._lock:
                self._records.pop(id, None)
        else:
            for suffix in ("json", "png"):
                (self._folder / f"{id}.{suffix}").unlink(missing_ok=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the text streams."""
        return 0 if self._cache is None else self._cache.nbytes

    def _required(self) -> TemplateCache:
        if self._cache is None:
            raise Problem(
                400, "The engine folder has no graphs for templates.",
                "Build it again with --streams two "
                f"{' '.join(f'--graph {name}' for name in ('default', *TEMPLATES))}.",
                param="template", code="no_templates",
            )  # fmt: skip
        return self._cache

    def _write(self, folder: Path, made: TemplateRecord) -> None:
        facts = {_SETTINGS: asdict(made.settings), "nbytes": made.nbytes, "created": made.created}
        contents: dict[str, Callable[[Path], Any]] = {
            "png": lambda path: path.write_bytes(made.preview),
            "json": lambda path: path.write_text(json.dumps(facts), encoding="utf-8"),  # last: it makes it visible
        }
        for suffix, write in contents.items():
            with whole_file(folder / f"{made.id}.{suffix}", private=True) as partial:
                write(partial)


def _read(path: Path) -> TemplateRecord:
    facts = read_json(path)
    settings = record(TemplateSettings, facts[_SETTINGS], _SETTINGS)
    preview = path.with_suffix(".png").read_bytes()
    return TemplateRecord(path.stem, settings, int(facts["nbytes"]), int(facts["created"]), preview)
