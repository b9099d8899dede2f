"""Arguments that Python callers give: each wrong type is one sentence, not a traceback from deep inside."""

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
    """Return a value as messages show it: as Python writes it, shortened."""
    return _SHORT.repr(value)


def whole_number(name: str, value: Any, fix: str, least: int | None = None) -> int:
    """Return a whole number.

    Args:
        name: what messages call it.
        value: an int, or what numpy has for one; neither a bool nor a text of digits.
        fix: what to do if it is none.
        least: the smallest allowed; None allows all.

    Raises:
        InputError: it is no whole number, or too small.
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
        name: what messages call it.
        value: a real number of Python's or numpy's; neither a bool nor a text of digits.
        fix: what to do if it is none.

    Raises:
        InputError: it is no number, or not finite.
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
    """Return whether a value is a real number of Python's or numpy's; a bool is none."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real)


def path_of(name: str, value: Any, fix: str) -> Path:
    """Return a path.

    Args:
        name: what messages call it.
        value: a text or a path object.
        fix: what to do if it is none.

    Raises:
        InputError: it is neither, or no path.
    """
    try:
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
    except TypeError as error:
        raise InputError(f"{name} must be a path, not {shown(value)}.", fix=fix) from error
    return Path(text)


def text_of(name: str, value: Any, fix: str = "Give a string.") -> str:
    """Return a text.

    Raises:
        InputError: it is none, or not valid Unicode.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be a text, not {shown(value)}.", fix=fix)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} {shown(value)} is not valid Unicode ({error.reason}).", fix="Type it anew."
        ) from error
    return value


def texts_of(name: str, value: Any, fix: str) -> list[str]:
    """Return one text or several as a list.

    Args:
        name: what messages call one of them.
        value: a text, or a list or tuple of texts.
        fix: what to do if it is neither.

    Raises:
        InputError: it is neither, or not valid Unicode.
    """
    if not isinstance(value, str | list | tuple):
        raise InputError(f"{name} must be a text, not {shown(value)}.", fix=fix)
    return [text_of(name, each, fix) for each in ([value] if isinstance(value, str) else value)]


def require_methods(name: str, value: Any, methods: tuple[str, ...], fix: str) -> None:
    """Reject an object that lacks methods that will be called, such as `is_set` of an event; None passes.

    Raises:
        InputError: it lacks one.
    """
    if value is not None and not all(callable(getattr(value, method, None)) for method in methods):
        raise InputError(f"{name} must have {', '.join(methods)}, which {shown(value)} has not.", fix=fix)


def require_callable(name: str, value: Any, fix: str) -> None:
    """Reject what cannot be called; None passes.

    Raises:
        InputError: it cannot.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} must be a function, not {shown(value)}.", fix=fix)


def settle_fields(options: Any) -> None:
    """Check the fields of a dataclass against their types, and turn what stands for a type into it.

    A text stands for a path, numpy's numbers for Python's, a list for a tuple.

    Args:
        options: a dataclass whose fields are numbers, texts, paths, bools, literals, tuples or unions of them.

    Raises:
        InputError: a field is of another type; names it.
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
    """Return a value as the type that a hint asks for; TypeError if it is none."""
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
        return f"several of {_words(kinds[0])}" if kinds[-1] is Ellipsis else f"{len(kinds)} times {_words(kinds[0])}"
    named = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    return named.get(hint, "None")
