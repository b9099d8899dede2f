"""JSON documents: strict parsing, a seal that detects damage, and dataclasses checked field by field.

A seal, the entry `seal`, is the sha256 of a document's other entries. Any change by a disk, a copy or an editor breaks
it. So a document that describes other files cannot itself be wrong silently.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import stat
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

SEAL = "seal"
_Record = TypeVar("_Record")
_MOST_BYTES = 1 << 28  # 256 MiB; SDXL's manifest has 0.1 MiB


def parse_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is not UTF-8 or not JSON, is nested too deeply, or contains a non-finite number.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: see `parse_json`; or the file is larger than any of our documents.
        OSError: it cannot be read.
    """
    require_plain(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
    return parse_json(path.read_bytes())


def require_plain(path: Path) -> None:
    """Reject what is not a plain file: reading a pipe would block, and a device may never end.

    Raises:
        OSError: it is not a plain file, or does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with its seal."""
    content = {name: value for name, value in document.items() if name != SEAL}
    return {**content, SEAL: _digest(content)}


def unsealed(document: Any) -> dict[str, Any]:
    """Return a document without its seal.

    Raises:
        ValueError: it is not a JSON object, has no seal, or has changed.
    """
    if not isinstance(document, dict):
        raise ValueError(f"it is {_kind(document)}, not an object")
    content = dict(document)
    if SEAL not in content:
        raise ValueError(f"it has no {SEAL}")
    if content.pop(SEAL) != _digest(content):
        raise ValueError(f"it has changed since it was written: its content does not match its {SEAL}")
    return content


def record(kind: type[_Record], value: Any, where: str = "") -> _Record:
    """Convert a JSON object to a dataclass, and check every entry against the field's type.

    Args:
        kind: a dataclass; its fields are strings, numbers, booleans, None, mappings, tuples, lists, unions and literals
            of these, and dataclasses of the same kind. A `float` accepts integers, an `int` no booleans.
        value: value from `parse_json`.
        where: its name for messages; the dataclass's name by default.

    Raises:
        ValueError: an entry is missing, unknown or of another type; the message names it.
    """
    made: _Record = _converted(kind, value, where or kind.__name__)
    return made


def _digest(content: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be written as JSON ({error})") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _converted(hint: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _made(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _of_union(arguments, value, where)
    if origin is typing.Literal:
        if not any(value == each and type(value) is type(each) for each in arguments):
            raise ValueError(f"{where} is {_kind(value)}, not one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (tuple, list):
        return _sequence(origin, arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_kind(value)}, not an object")
        return {name: _converted(arguments[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if hint is float and type(value) is int:
        return float(value) if abs(value) < 1 << 53 else _wrong(hint, value, where)
    return value if type(value) is hint or (hint is type(None) and value is None) else _wrong(hint, value, where)


def _made(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_kind(value)}, not an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{where} has an unknown entry {unknown[0]!r}")
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in value and missing:
            raise ValueError(f"{where} lacks {name!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _converted(hints[name], entry, f"{where}.{name}") for name, entry in value.items()})


def _of_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    reasons = []
    for hint in hints:
        try:
            return _converted(hint, value, where)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(dict.fromkeys(reasons)))


def _sequence(kind: Any, hints: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_kind(value)}, not a list")
    if kind is tuple and Ellipsis not in hints:
        if len(value) != len(hints):
            raise ValueError(f"{where} has {len(value)} entries, not {len(hints)}")
        return tuple(
            _converted(hint, entry, f"{where}[{i}]") for i, (hint, entry) in enumerate(zip(hints, value, strict=True))
        )
    return kind(_converted(hints[0], entry, f"{where}[{index}]") for index, entry in enumerate(value))


def _wrong(hint: Any, value: Any, where: str) -> Any:
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    raise ValueError(f"{where} is {_kind(value)}, not {names.get(hint, hint)}")


def _kind(value: Any) -> str:
    """Return a value for a message: itself if it is short, else its kind."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "a large number" if abs(value) > 1e15 else str(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    return "a list" if isinstance(value, list) else "an object"
