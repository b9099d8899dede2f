"""Finds the source code that a result depends on: the statements that its starting points reach.

A file is too coarse a unit: a Triton kernel and its PyTorch reference share one. So the unit is a statement of a
module: a function, a class, an assignment. The names in a statement are followed, through imports of our own packages
(at the top or inside functions), and through annotations, since a parameter's methods are called too. Other packages
are not followed; their versions are among an artifact's fields. Code that is reached by a string, or registered
elsewhere, is not found: it has to be a starting point itself. Nothing is imported, so an unchanged rebuild needs no
torch.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_COMPOUND = (ast.If, ast.Try, ast.With, ast.For)


class Name(NamedTuple):
    """A name in a module; an empty one is the whole module."""

    module: str
    name: str = ""


class Place(NamedTuple):
    """The lines of a statement in a module's source, decorators included."""

    module: str
    first: int
    last: int


def named(text: str) -> Name:
    """Parse `module:name` or `module`."""
    module, _, name = text.partition(":")
    return Name(module, name)


@dataclass(frozen=True)
class Code:
    """The starting points of code, and the parts that do not matter.

    Args:
        starts: starting points: names as `module:name`, or whole modules.
        stops: likewise, for code that is not followed.
        without: names of class members that are ignored.
        packages: top-level packages that are followed.
    """

    starts: tuple[str, ...]
    stops: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def statements(self) -> dict[Place, str]:
        """Return the source of every statement that is reached.

        Raises:
            ValueError: a start or a stop does not exist.
        """
        stops = {named(stop) for stop in self.stops}
        for stop in stops:
            _require(stop)
        waiting, found = [named(start) for start in self.starts], {}
        seen = set(waiting)
        while waiting:
            here = waiting.pop()
            module = _require(here)
            for statement in module.named(here.name):
                place = Place(here.module, _first_line(statement), statement.end_lineno or statement.lineno)
                found[place] = module.text(place, _members(statement, self.without))
            for target, attribute in module.targets(here.name, self.without):
                followed = self._resolved(target, attribute)
                if followed and followed not in seen and not {followed, Name(followed.module)} & stops:
                    seen.add(followed)
                    waiting.append(followed)
        return found

    def hash(self) -> str:
        """Return a hash of every statement that is reached."""
        digest = hashlib.sha256()
        for place, text in sorted(self.statements().items()):
            digest.update(f"{place.module}\0{text}\0".encode())
        return digest.hexdigest()

    def _resolved(self, target: Name, attribute: str) -> Name | None:
        """Return the place of a name, or of an attribute if it is a module; None for another package."""
        if target.module.partition(".")[0] not in self.packages:
            return None
        for name in (target.name, attribute):
            if name and _require(Name(target.module)).has(name):
                return Name(target.module, name)
            if name and _module(f"{target.module}.{name}") is not None:
                target = Name(f"{target.module}.{name}")
        return Name(target.module)


def _require(name: Name) -> _Module:
    module = _module(name.module)
    if module is None or (name.name and not module.has(name.name)):
        raise ValueError(f"there is no {name.name or 'source'} in {name.module}")
    return module


class _Use(NamedTuple):
    """A name in a statement, and the attribute that is accessed on it, if any."""

    name: str
    attribute: str


@dataclass
class _Module:
    """The top-level statements of a module, by the names that they bind or change."""

    name: str
    lines: list[str]
    names: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Name] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)  # statements that bind no name

    def add(self, statement: ast.stmt) -> None:
        """Add a statement."""
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return  # the docstring
        if isinstance(statement, ast.If) and getattr(statement.test, "id", "") == "TYPE_CHECKING":
            for each in statement.body:
                self.add(each)
            return
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.imports |= _imported(statement)
            return
        names = {name for name in _changed(statement, self.names) if name != "_"}
        for name in names:
            self.names.setdefault(name, []).append(statement)
        if not names:
            self.effects.append(statement)

    def named(self, name: str) -> list[ast.stmt]:
        """Return the statements of a name, or of the whole module, and those with side effects only."""
        if not name:
            return [*(each for found in self.names.values() for each in found), *self.effects]
        return [*self.names.get(name, []), *self.effects]

    def text(self, place: Place, left_out: Collection[ast.stmt]) -> str:
        """Return the source of a statement of this module without some of its members."""
        lines = set(range(place.first, place.last + 1))
        for member in left_out:
            lines -= set(range(_first_line(member), (member.end_lineno or member.lineno) + 1))
        return "\n".join(self.lines[line - 1] for line in sorted(lines))

    def has(self, name: str) -> bool:
        """Return whether the module binds a name."""
        return name in self.names or name in self.imports

    def targets(self, name: str, without: tuple[str, ...]) -> Iterator[tuple[Name, str]]:
        """Yield the names and attributes that the statements of a name, or of the whole module, use."""
        if name in self.imports:
            yield self.imports[name], ""  # re-exported
        for statement in self.named(name):
            uses, local = _uses(statement, without)
            if isinstance(statement, _COMPOUND):
                yield from ((target, "") for target in local.values())  # its imports apply to the whole module
            known = {**self.imports, **local}
            for use in uses:
                if use.name in known:
                    yield known[use.name], use.attribute
                elif use.name in self.names:
                    yield Name(self.name, use.name), ""


@cache
def _uses(statement: ast.stmt, without: tuple[str, ...]) -> tuple[frozenset[_Use], dict[str, Name]]:
    """Return the names that a statement uses, and the names that it imports locally."""
    waiting: list[ast.AST] = [statement]
    left_out = _members(statement, without)
    uses: set[_Use] = set()
    local: dict[str, Name] = {}
    while waiting:
        node = waiting.pop()
        if node in left_out:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            uses.add(_Use(node.value.id, node.attr))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.add(_Use(node.id, ""))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            local |= _imported(node)
        else:
            waiting += ast.iter_child_nodes(node)
    return frozenset(uses), local


def _members(statement: ast.AST, names: Collection[str]) -> list[ast.stmt]:
    """Return the members of a class with one of these names."""
    if not isinstance(statement, ast.ClassDef):
        return []
    return [member for member in statement.body if set(_bound(member)) & set(names)]


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(each.lineno for each in decorators)])


def _bound(statement: ast.AST) -> Iterator[str]:
    """Yield the names that a statement binds or changes."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
    elif isinstance(statement, _COMPOUND):
        for child in ast.iter_child_nodes(statement):
            nested = child.body if isinstance(child, ast.ExceptHandler) else [child]
            for each in nested:
                yield from (*_bound(each), *_imported(each))


def _changed(statement: ast.stmt, known: Collection[str]) -> Iterator[str]:
    """Yield the names that a statement binds, and known names that it registers with: `@known.register`."""
    yield from _bound(statement)
    calls = getattr(statement, "decorator_list", [])
    if isinstance(statement, ast.Expr):
        calls = [statement.value]
    for call in calls:
        target = call.func if isinstance(call, ast.Call) else call
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in known:
            yield target.value.id


def _imported(node: ast.AST) -> dict[str, Name]:
    """Return the imports of a statement, by the names that they bind."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: Name(alias.name if alias.asname else alias.name.split(".")[0])
            for alias in node.names
        }
    if isinstance(node, ast.ImportFrom) and node.module != "__future__":
        return {alias.asname or alias.name: Name(str(node.module), alias.name) for alias in node.names}
    return {}


@cache
def _module(name: str) -> _Module | None:
    """Read a module's source."""
    path = source_file(name)
    return None if path is None else parse(name, path.read_text(encoding="utf-8"))


def parse(name: str, source: str) -> _Module:
    """Return the statements of a module's source."""
    module = _Module(name, source.splitlines())
    for statement in ast.parse(source).body:
        module.add(statement)
    return module


def source_file(name: str) -> Path | None:
    """Return a module's source file, found without importing it or its package."""
    top, *rest = name.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if spec.submodule_search_locations is None:  # a module, not a package
        return None if rest else Path(spec.origin)
    path = Path(spec.origin).parent.joinpath(*rest)
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None
