"""The enrolled people: in memory, or as person files in a folder that outlives the process and that servers share."""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from safetensors import SafetensorError

from infid_engines.errors import DiskFullError, InputError
from infid_export.runtime.person import Person, person_name
from infid_export.serve.http.problems import Problem

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # no dot and no slash: it cannot leave the folder
_SUFFIX = ".safetensors"


class PersonRecord(NamedTuple):
    """What is known of a person.

    Args:
        id: unguessable, unless the file's name was chosen by hand.
        name: chosen by the client.
        created: seconds since 1970.
    """

    id: str
    name: str
    created: int


class People(ABC):
    """A store of people. For threads."""

    def add(self, person: Person) -> PersonRecord:
        """Keep a person under a new id.

        Raises:
            Problem: there is no room.
            InputError: the file cannot be written.
        """
        record = PersonRecord(f"person_{secrets.token_hex(12)}", person.name, int(time.time()))
        self._keep(record, person)
        return record

    @abstractmethod
    def get(self, id: str) -> Person:
        """Return a person.

        Raises:
            Problem: there is no such person.
            InputError: the file is damaged.
        """

    @abstractmethod
    def record(self, id: str) -> PersonRecord:
        """Return what is known of a person.

        Raises:
            Problem: there is no such person.
        """

    @abstractmethod
    def list(self) -> list[PersonRecord]:
        """Return all people, the newest first."""

    @abstractmethod
    def erase(self, id: str) -> None:
        """Erase a person from memory and from the disk.

        Raises:
            Problem: there is no such person.
        """

    @abstractmethod
    def forget(self, id: str) -> None:
        """Drop a person from memory whom another server has erased."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the people in memory."""

    @abstractmethod
    def _keep(self, record: PersonRecord, person: Person) -> None: ...


class PeopleInMemory(People):
    """People who are gone with the process.

    Args:
        budget: bytes of all of them.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._lock = budget, threading.Lock()
        self._people: dict[str, tuple[PersonRecord, Person]] = {}

    def get(self, id: str) -> Person:
        """Return a person."""
        return self._found(id)[1]

    def record(self, id: str) -> PersonRecord:
        """Return what is known of a person."""
        return self._found(id)[0]

    def list(self) -> list[PersonRecord]:
        """Return all people, the newest first."""
        with self._lock:
            return [record for record, _ in self._people.values()][::-1]

    def erase(self, id: str) -> None:
        """Erase a person."""
        with self._lock:
            if self._people.pop(id, None) is None:
                raise _nobody(id)

    def forget(self, id: str) -> None:
        """Do nothing: no other server has these people."""

    @property
    def nbytes(self) -> int:
        """Bytes of the people."""
        with self._lock:
            return sum(_size(person) for _, person in self._people.values())

    def _found(self, id: str) -> tuple[PersonRecord, Person]:
        with self._lock:
            if id not in self._people:
                raise _nobody(id)
            return self._people[id]

    def _keep(self, record: PersonRecord, person: Person) -> None:
        need = _size(person)
        taken = self.nbytes
        if taken + need > self._budget:
            raise Problem(
                507, f"The people in memory take {taken:,} bytes of {self._budget:,}; this one needs {need:,}.",
                "Erase somebody, or start the server with --people DIR.", code="no_room",
            )  # fmt: skip
        with self._lock:
            self._people[record.id] = record, person


class PeopleInFolder(People):
    """People as files `<id>.safetensors`, readable by their owner only.

    Args:
        folder: it is made if need be. Files that `infid-export enroll` wrote there are people too.
        budget: bytes of the people that are kept in memory as well; the least recently used is dropped first.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget, self._lock = folder, budget, threading.Lock()
        self._recent: OrderedDict[tuple[str, int], Person] = OrderedDict()
        self._alive: WeakValueDictionary[tuple[str, int], Person] = WeakValueDictionary()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise InputError(
                f"The folder of people {folder} cannot be used ({error.strerror}).", fix="Choose another with --people."
            ) from error

    def get(self, id: str) -> Person:
        """Return a person, from memory if the file has not changed."""
        path = self._path(id)
        try:
            key = id, path.stat().st_mtime_ns
        except FileNotFoundError:  # erased by another server just now
            raise _nobody(id) from None
        with self._lock:
            person = self._alive.get(key)
        if person is None:
            try:
                person = Person.load(path)
            except InputError as error:  # whose sentence has the path
                raise _damaged() from error
        with self._lock:
            self._recent[key] = self._alive[key] = person
            self._recent.move_to_end(key)
            while len(self._recent) > 1 and sum(map(_size, self._recent.values())) > self._budget:
                self._recent.popitem(last=False)
        return person

    def record(self, id: str) -> PersonRecord:
        """Return what is known of a person."""
        path = self._path(id)
        try:
            return self._read(path)
        except FileNotFoundError:  # erased by another server just now
            raise _nobody(id) from None
        except (OSError, SafetensorError) as error:
            raise _damaged() from error

    def list(self) -> list[PersonRecord]:
        """Return all people, the newest first; files that are no people are left out."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if _ID.fullmatch(path.stem) and path.is_file() and not path.is_symlink():
                with suppress(OSError, SafetensorError):  # erased just now, or no person
                    found.append(self._read(path))
        return sorted(found, key=lambda record: (-record.created, record.id))

    def erase(self, id: str) -> None:
        """Erase a person's file, and the person from memory."""
        path = self._path(id)
        self.forget(id)
        try:
            path.unlink()
        except FileNotFoundError:  # by another server just now
            raise _nobody(id) from None

    def forget(self, id: str) -> None:
        """Drop a person from memory."""
        with self._lock:
            for kept in (self._recent, self._alive):
                for key in [key for key in kept if key[0] == id]:
                    kept.pop(key, None)

    @property
    def nbytes(self) -> int:
        """Bytes of the people in memory."""
        with self._lock:
            return sum(map(_size, self._recent.values()))

    def _path(self, id: str) -> Path:
        """Return the file of a person who exists."""
        path = self._folder / f"{id}{_SUFFIX}"
        if not _ID.fullmatch(id) or path.is_symlink() or not path.is_file():
            raise _nobody(id)
        return path

    def _read(self, path: Path) -> PersonRecord:
        return PersonRecord(path.stem, person_name(path), int(path.stat().st_mtime))

    def _keep(self, record: PersonRecord, person: Person) -> None:
        try:
            person.save(self._folder / f"{record.id}{_SUFFIX}")
        except DiskFullError:
            raise
        except InputError as error:
            raise Problem(500, "The person cannot be stored.", "The server's folder of people is not writable.",
                          code="not_stored") from error  # fmt: skip


def _size(person: Person) -> int:
    return person.identity_tokens.nbytes + person.identity_keys.nbytes + person.identity_values.nbytes


def _nobody(id: str) -> Problem:
    return Problem(404, f"There is no person {id[:64]!r}.", "POST photos to /v1/people first.", code="not_found")


def _damaged() -> Problem:
    return Problem(404, "The file of the person is damaged.", "Erase the person, and enroll again.",
                   code="damaged_person")  # fmt: skip
