"""Checks arguments from Python callers: a wrong type gives one sentence, not a traceback from deep inside."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import os
import reprlib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from infid_engines.errors import InputError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Return a value for messages: its repr, shortened."""
    return _SHORT.repr(value)


def whole_number(name: str, value: Any, fix: str, least: int | None = None) -> int:
    """Return a whole number.

    Args:
        name: its name for messages.
        value: an int or a numpy integer; neither a bool nor a string of digits.
        fix: what to do if it is not valid.
        least: the smallest allowed value; None allows all.

    Raises:
        InputError: it is not a whole number, or too small.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} must be a whole number, not {shown(value)}.", fix=fix) from error
    if least is not None and number < least:
        raise InputError(f"{name} must be at least {least}, not {shown(number)}.", fix=fix)
    return number


def finite_number(name: str, value: Any, fix: str) -> float:
    """Return a finite number.

    Args:
        name: its name for messages.
        value: a real number of Python or numpy; neither a bool nor a string of digits.
        fix: what to do if it is not valid.

    Raises:
        InputError: it is not a number, or not finite.
    """
    if not is_number(value):
        raise InputError(f"{name} must be a number, not {shown(value)}.", fix=fix)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number, not {number}.", fix=fix)
    return number


def is_number(value: Any) -> bool:
    """Return whether a value is a real number of Python or numpy; a bool is not."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real)


def path_of(name: str, value: Any, fix: str) -> Path:
    """Return a path.

    Args:
        name: its name for messages.
        value: a string or a path object.
        fix: what to do if it is not valid.

    Raises:
        InputError: it is not a path.
    """
    try:
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
    except TypeError as error:
        raise InputError(f"{name} must be a path, not {shown(value)}.", fix=fix) from error
    return Path(text)


def text_of(name: str, value: Any, fix: str = "Give a string.") -> str:
    """Return a string.

    Raises:
        InputError: it is not a string, or not valid Unicode.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, not {shown(value)}.", fix=fix)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} {shown(value)} is not valid Unicode ({error.reason}).", fix="Type it again."
        ) from error
    return value


def texts_of(name: str, value: Any, fix: str) -> list[str]:
    """Return one string or several as a list.

    Args:
        name: name of one of them for messages.
        value: a string, or a list or tuple of strings.
        fix: what to do if it is not valid.

    Raises:
        InputError: it is neither of these, or not valid Unicode.
    """
    if not isinstance(value, str | list | tuple):
        raise InputError(f"{name} must be a string, not {shown(value)}.", fix=fix)
    return [text_of(name, each, fix) for each in ([value] if isinstance(value, str) else value)]


def require_methods(name: str, value: Any, methods: tuple[str, ...], fix: str) -> None:
    """Reject an object without the methods that will be called, such as an event's `is_set`; None passes.

    Raises:
        InputError: it lacks a method.
    """
    if value is not None and not all(callable(getattr(value, method, None)) for method in methods):
        raise InputError(f"{name} must have {', '.join(methods)}, which {shown(value)} lacks.", fix=fix)


def require_callable(name: str, value: Any, fix: str) -> None:
    """Reject an object that cannot be called; None passes.

    Raises:
        InputError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} must be a function, not {shown(value)}.", fix=fix)


def settle_fields(options: Any) -> None:
    """Check the fields of a dataclass against their types, and convert equivalent values.

    A string becomes a path, a numpy number a Python number, a list a tuple.

    Args:
        options: a dataclass whose fields are numbers, strings, paths, bools, literals, tuples or unions of them.

    Raises:
        InputError: a field has another type; the message names it.
    """
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        try:
            object.__setattr__(options, name, _settled(value, hint))
        except TypeError as error:
            raise InputError(
                f"{name} must be {_words(hint)}, not {shown(value)}.", fix=f"Give another {name}."
            ) from error


def _settled(value: Any, hint: Any) -> Any:
    """Return a value converted to a type hint; raise TypeError if it does not fit."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        for kind in kinds:
            with contextlib.suppress(TypeError):
                return _settled(value, kind)
    elif get_origin(hint) is Literal:
        if isinstance(value, str) and value in kinds:
            return value
    elif get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
            if len(each) == len(value):
                return tuple(_settled(item, kind) for item, kind in zip(value, each, strict=True))
    elif hint is Path and isinstance(value, str) and value:
        return Path(value)
    elif hint is int and not isinstance(value, bool):
        return operator.index(value)
    elif hint is float and is_number(value):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise TypeError


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, get_args(hint))))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        count = "several" if kinds[-1] is Ellipsis else len(kinds)
        return f"{count} values, each {_words(kinds[0])}"
    named = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", Path: "a path"}
    return named.get(hint, "None")
