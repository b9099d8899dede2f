"""A cache of templates: they are made on first use and kept up to a budget, in memory or as files."""

from __future__ import annotations

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from infid_engines.atomic_files import locked, partial_of
from infid_engines.errors import BusyError, InputError
from infid_engines.manifest import Manifest, canonical_key
from infid_engines.progress import Reporter
from infid_engines.validation import path_of, whole_number
from infid_export.runtime.job import Watch
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template, TemplateSettings, template_layout, template_size, text_model_id

_HEADER = 1 << 16  # more bytes than a template file has besides its tensors
_NAME = re.compile(r"cached-[0-9a-f]{64}\.safetensors")
_LOOKS_EVERY = 0.05  # seconds between two looks while another process makes a template


class TemplateCache:
    """The templates of one pipeline, made on first use; the least recently used is dropped first. For threads too.

    Args:
        pipe: its engines make the templates.
        budget: bytes of all templates together. One that is dropped while it is in use stays valid for whoever uses it;
            in memory it counts until then.
        folder: keep templates as files there, so that they outlive the process, and processes share them in memory and
            on disk; the budget is for the cache's files in the folder. None keeps them in this process.

    Raises:
        InputError: an argument does not fit.
    """

    def __init__(self, pipe: Pipeline, budget: int, folder: str | Path | None = None) -> None:
        self._pipe = pipe
        self._budget = whole_number("The budget", budget, "Give a number of bytes.", least=0)
        self._lock = threading.Lock()  # for the store; never held while a template is made
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
            InputError: an argument does not fit, the budget is smaller than the template, templates in use leave too
                little of it, or the folder cannot be used.
            CancelledError: `cancel` was set.
            EngineFolderError: as in `Pipeline.template`.
        """
        Watch(None, cancel, reporter).check()
        seed = whole_number("The seed of a cached template", seed, "Give one from 0 up.", least=0)
        chosen = self._pipe.template_settings(prompt, seed=seed, **settings)
        need = self.need(chosen)
        if need > self._budget:
            raise _too_small(self._budget, need, self._pipe.manifest, chosen)
        key = self.key(chosen)
        found = self._find(key)
        while found is None:
            # the engines are held first: whoever makes a template needs them anyway, and locks in one order
            with self._pipe.turn(cancel):
                found = self._find(key)
                if found is None:
                    with suppress(BusyError), self._store.making():
                        found = self._find(key) or self._made(key, chosen, need, cancel, reporter)
            if found is None:  # another process makes one; the engines are free meanwhile
                time.sleep(_LOOKS_EVERY)
        return found

    def fits(self, settings: TemplateSettings) -> bool:
        """Return whether the budget is large enough for a template."""
        return self.need(settings) <= self._budget

    def need(self, settings: TemplateSettings) -> int:
        """Return the bytes that a template takes of the budget."""
        return template_size(self._pipe.manifest, settings) + self._store.overhead

    def key(self, settings: TemplateSettings) -> str:
        """Return the hash under which a template is kept: of its settings, its model and its layout."""
        manifest = self._pipe.manifest
        layout = template_layout(manifest, settings)
        return canonical_key({"model": text_model_id(manifest), "settings": asdict(settings), "layout": layout})

    def find(self, settings: TemplateSettings) -> Template | None:
        """Return a template if it is in the cache.

        Raises:
            InputError: the folder cannot be used.
        """
        return self._find(self.key(settings))

    def drop(self, settings: TemplateSettings) -> None:
        """Drop a template; it stays valid for whoever uses it.

        Raises:
            InputError: the folder cannot be used.
        """
        with self._lock, _folder_explained():
            self._store.drop(self.key(settings))

    def _find(self, key: str) -> Template | None:
        with self._lock, _folder_explained():
            return self._store.find(key)

    def _made(
        self, key: str, chosen: TemplateSettings, need: int, cancel: threading.Event | None, reporter: Reporter | None
    ) -> Template:
        with self._lock, _folder_explained():
            self._store.make_room(self._budget - need)
        template = self._pipe.template(**asdict(chosen), path=self._store.path(key), cancel=cancel, reporter=reporter)
        with self._lock:
            self._store.keep(key, template)
        return template

    @property
    def nbytes(self) -> int:
        """Bytes of the budget that are taken."""
        with self._lock:
            return self._store.nbytes

    def clear(self) -> None:
        """Drop all templates; those in use stay valid for whoever uses them."""
        with self._lock:
            self._store.clear()


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

    def making(self) -> AbstractContextManager[None]:
        """Hold off other processes.

        Raises:
            BusyError: one of them is making a template.
        """
        return nullcontext()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are taken."""

    @abstractmethod
    def make_room(self, most: int) -> None:
        """Drop templates until at most so many bytes are taken.

        Raises:
            InputError: those in use take more.
        """

    @abstractmethod
    def drop(self, key: str) -> None:
        """Drop a template, if it is kept."""

    @abstractmethod
    def clear(self) -> None:
        """Drop all templates."""


class _Memory(_Store):
    def __init__(self) -> None:
        self._kept: OrderedDict[str, Template] = OrderedDict()
        self._alive: WeakValueDictionary[str, Template] = WeakValueDictionary()  # also those dropped while in use

    def find(self, key: str) -> Template | None:
        template = self._alive.get(key)
        if template is not None:
            self._kept[key] = template
            self._kept.move_to_end(key)
        return template

    def keep(self, key: str, template: Template) -> None:
        self._kept[key] = self._alive[key] = template

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in list(self._alive.values()))

    def make_room(self, most: int) -> None:
        while self._kept and self.nbytes > most:
            self._kept.popitem(last=False)
        if self.nbytes > most:
            raise InputError(
                f"Templates in use take {self.nbytes:,} bytes, which leaves too little of the budget.",
                fix="Wait until their images are finished, or give a larger budget.",
            )

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)
        template = self._alive.pop(key, None)
        if template is not None:  # while somebody uses it, it counts but is not found
            self._alive[f"{key} {id(template)}"] = template

    def clear(self) -> None:
        self._kept.clear()


class _Folder(_Store):
    overhead = _HEADER

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: WeakValueDictionary[str, Template] = WeakValueDictionary()
        self._checked: set[tuple[str, int]] = set()  # files whose content was read, by their inodes
        with _folder_explained():
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        return self._folder / f"cached-{key}.safetensors"

    def find(self, key: str) -> Template | None:
        path = self.path(key)
        try:
            os.utime(path)
            content = (key, path.stat().st_ino)
        except FileNotFoundError:
            return None
        template = self._opened.get(key)
        if template is None:
            try:
                template = Template.load(path, check=content not in self._checked)
            except InputError:  # damaged, or dropped just now: it is made again
                return None
            self._checked.add(content)
            self._opened[key] = template
        return template

    def keep(self, key: str, template: Template) -> None:
        self._opened[key] = template

    @contextmanager
    def making(self) -> Iterator[None]:
        with locked(self._folder / ".lock", busy="Another process makes a template."):
            for path in self._folder.glob(f"{partial_of(self.path('*')).name}"):  # left by a killed process
                path.unlink(missing_ok=True)
            yield

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return the cache's files with their sizes, least recently used first."""
        found = []
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):  # dropped by another process just now
                    facts = path.stat()
                    found.append((facts.st_mtime, facts.st_size, path))
        return sorted(found)

    @property
    def nbytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    def make_room(self, most: int) -> None:
        files = self._files()
        taken = sum(size for _, size, _ in files)
        for _, size, path in files:
            if taken > most:
                path.unlink(missing_ok=True)  # the content stays until nobody has it mapped
                taken -= size

    def drop(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)
        self._opened.pop(key, None)

    def clear(self) -> None:
        self.make_room(-1)


@contextmanager
def _folder_explained() -> Iterator[None]:
    """Turn the system's error into one sentence.

    Raises:
        InputError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The folder of cached templates cannot be used: {error.filename} ({error.strerror}).",
            fix="Choose another folder.",
        ) from error


def _too_small(budget: int, need: int, manifest: Manifest, settings: TemplateSettings) -> InputError:
    per_step = template_size(manifest, replace(settings, steps=2)) - template_size(manifest, replace(settings, steps=1))
    fitting = settings.steps + (budget - need) // per_step
    fewer = f", or fewer steps ({fitting} fit)" if fitting > 0 else ""
    smaller = "" if "snr" in template_layout(manifest, settings) else ", or build with --quantize-templates"
    return InputError(
        f"The template takes {need:,} bytes, but the budget is {budget:,}.",
        fix=f"Give a budget of at least {need:,}{fewer}{smaller}.",
    )
