"""Arguments that Python callers give: each wrong type is one sentence, not a traceback from deep inside."""

from __future__ import annotations

import math
import numbers
import operator
import os
import reprlib
from pathlib import Path
from typing import Any

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
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number, not {shown(value)}.", fix=fix)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number, not {number}.", fix=fix)
    return number


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
    """Refuse an object that lacks methods that will be called, such as `is_set` of an event; None passes.

    Raises:
        InputError: it lacks one.
    """
    if value is not None and not all(callable(getattr(value, method, None)) for method in methods):
        raise InputError(f"{name} must have {', '.join(methods)}, which {shown(value)} has not.", fix=fix)


def require_callable(name: str, value: Any, fix: str) -> None:
    """Refuse what cannot be called; None passes.

    Raises:
        InputError: it cannot.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} must be a function, not {shown(value)}.", fix=fix)
