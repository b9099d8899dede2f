"""A cache of templates: they are made on first use and kept up to a budget, in memory or as files."""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakSet

from infid_engines.atomic_files import locked
from infid_engines.errors import InputError
from infid_engines.manifest import canonical_key
from infid_engines.progress import Reporter
from infid_engines.validation import path_of, whole_number
from infid_export.runtime.job import turn
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template, TensorLayout, template_layout, text_model_id

_HEADER = 1 << 16  # more bytes than a template file has besides its tensors


class TemplateCache:
    """The templates of one pipeline, made on first use; the least recently used is dropped first. For threads too.

    Args:
        pipe: its engines make the templates.
        budget: bytes of all templates together. One that is dropped while it is in use stays valid for whoever uses it;
            in memory it counts until then.
        folder: keep templates as files there, so that they outlive the process, and processes share them in memory and
            on disk; the budget is for the folder. None keeps them in this process.

    Raises:
        InputError: an argument does not fit.
    """

    def __init__(self, pipe: Pipeline, budget: int, folder: str | Path | None = None) -> None:
        self._pipe = pipe
        self._budget = whole_number("The budget", budget, "Give a number of bytes.", least=0)
        self._lock = threading.RLock()
        self._store: _Store = _Memory() if folder is None else _Folder(path_of("The folder", folder, "Give a path."))

    def get(
        self, prompt: str, *, seed: int = 0, cancel: threading.Event | None = None, reporter: Reporter | None = None,
        **settings: Any,
    ) -> Template:  # fmt: skip
        """Return a template, from the cache or newly made.

        Args:
            prompt: the prompt; arguments as in `Pipeline.template`.
            seed: likewise; not random, since the template would never be found again.
            cancel: likewise.
            reporter: likewise.
            settings: the other settings of `Pipeline.template_settings`.

        Raises:
            InputError: an argument does not fit, the budget is smaller than the template, or templates in use leave too
                little of it.
            CancelledError: `cancel` was set.
            EngineFolderError: as in `Pipeline.template`.
        """
        chosen = self._pipe.template_settings(prompt, seed=seed, **settings)
        layout = template_layout(self._pipe.manifest, chosen)
        need = sum(each.nbytes for each in layout.values()) + self._store.overhead
        if need > self._budget:
            raise _too_small(self._budget, need, layout, chosen.steps)
        facts = {"model": text_model_id(self._pipe.manifest), "settings": asdict(chosen), "layout": layout}
        key = canonical_key(facts)
        with turn(self._lock, cancel):
            found = self._store.find(key)
            if found is not None:
                return found
            with self._store.making():
                found = self._store.find(key)  # another process may have made it
                if found is None:
                    self._store.make_room(self._budget - need)
                    path = self._store.path(key)
                    found = self._pipe.template(**asdict(chosen), path=path, cancel=cancel, reporter=reporter)
                    self._store.keep(key, found)
            return found

    @property
    def nbytes(self) -> int:
        """Bytes of the budget that are taken."""
        return self._store.nbytes

    def clear(self) -> None:
        """Drop all templates."""
        with self._lock:
            self._store.make_room(-1)


class _Store(ABC):
    """Where templates are kept, by key."""

    overhead = 0

    @abstractmethod
    def find(self, key: str) -> Template | None:
        """Return a template, which is now the most recently used one."""

    def path(self, key: str) -> Path | None:
        """Return the file that a template is made in, or None."""
        return None

    @abstractmethod
    def keep(self, key: str, template: Template) -> None:
        """Keep a template that was made."""

    def making(self) -> contextlib.AbstractContextManager[None]:
        """Hold off other processes."""
        return contextlib.nullcontext()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are taken."""

    @abstractmethod
    def make_room(self, most: int) -> None:
        """Drop templates until at most so many bytes are taken, if possible.

        Raises:
            InputError: those in use take more.
        """


class _Memory(_Store):
    def __init__(self) -> None:
        self._kept: OrderedDict[str, Template] = OrderedDict()
        self._alive: WeakSet[Template] = WeakSet()  # also those that were dropped while somebody uses them

    def find(self, key: str) -> Template | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: str, template: Template) -> None:
        self._kept[key] = template
        self._alive.add(template)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._alive)

    def make_room(self, most: int) -> None:
        while self._kept and self.nbytes > most:
            self._kept.popitem(last=False)
        if self.nbytes > max(most, 0):
            raise InputError(
                f"Templates in use take {self.nbytes:,} bytes, which leaves too little of the budget.",
                fix="Wait until their images are finished, or give a larger budget.",
            )


class _Folder(_Store):
    overhead = _HEADER

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[str, Template] = {}

    def path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def find(self, key: str) -> Template | None:
        path = self.path(key)
        try:
            os.utime(path)
            if key not in self._opened:
                self._opened[key] = Template.load(path)
        except FileNotFoundError:  # another process has dropped it
            self._opened.pop(key, None)
        except InputError:  # damaged: it is made again
            path.unlink(missing_ok=True)
        return self._opened.get(key)

    def keep(self, key: str, template: Template) -> None:
        self._opened[key] = template

    def making(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._folder / ".lock")

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return the files with their sizes, least recently used first."""
        found = ((path, path.stat()) for path in self._folder.glob("*.safetensors"))
        return sorted((facts.st_mtime, facts.st_size, path) for path, facts in found)

    @property
    def nbytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    def make_room(self, most: int) -> None:
        files = self._files()
        taken = sum(size for _, size, _ in files)
        for _, size, path in files:
            if taken <= most:
                break
            path.unlink(missing_ok=True)  # the content stays until nobody has it mapped
            self._opened.pop(path.stem, None)
            taken -= size


def _too_small(budget: int, need: int, layout: dict[str, TensorLayout], steps: int) -> InputError:
    per_step = sum(each.nbytes // steps for each in layout.values() if each.shape[0] == steps)
    fitting = max(0, (budget - (need - per_step * steps)) // per_step)
    fewer = f", or fewer steps ({fitting} fit)" if fitting else ""
    smaller = "" if "snr" in layout else ", or build with --quantize-templates"
    return InputError(
        f"The template takes {need:,} bytes, but the budget is {budget:,}.",
        fix=f"Give a budget of at least {need:,}{fewer}{smaller}.",
    )
