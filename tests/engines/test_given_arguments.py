from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from infid_engines.errors import InputError
from infid_engines.validation import (
    finite_number,
    path_of,
    require_callable,
    require_methods,
    settle_fields,
    shown,
    text_of,
    texts_of,
    whole_number,
)

NO_NUMBER: tuple[Any, ...] = ("128", b"128", True, None, [1], {}, 1j, np.array([1, 2]), Path("1"))


@pytest.mark.parametrize("value", [*NO_NUMBER, 1.5, 2.0, float("nan"), np.float32(2)], ids=repr)
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(InputError, match=r"^height must be a whole number, not ") as raised:
        whole_number("height", value, "Give pixels.")
    assert raised.value.fix == "Give pixels."


@pytest.mark.parametrize("value", [*NO_NUMBER, "5"], ids=repr)
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(InputError, match=r"^guidance must be a number, not "):
        finite_number("guidance", value, "5 is usual.")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), np.float32("inf"), 10**400], ids=lambda v: str(v)[:9])
def test_what_is_not_finite(value: Any) -> None:
    with pytest.raises(InputError, match="must be a finite number"):
        finite_number("guidance", value, "5 is usual.")


def test_numbers_of_numpy_are_numbers() -> None:
    assert whole_number("n", np.uint8(7), "") == 7
    assert finite_number("n", np.float16(0.5), "") == 0.5
    assert finite_number("n", 3, "") == 3.0
    with pytest.raises(InputError, match="at least 1, not 0"):
        whole_number("n", 0, "", least=1)


@pytest.mark.parametrize("value", [None, 3, b"engines", "", "a\0b", ["a"], np.zeros(2)], ids=repr)
def test_what_is_no_path(value: Any) -> None:
    with pytest.raises(InputError, match=r"^The folder must be a path, not "):
        path_of("The folder", value, "Give one.")


def test_paths() -> None:
    assert path_of("p", "a/b", "") == path_of("p", Path("a/b"), "") == Path("a/b")


@pytest.mark.parametrize("value", [None, 3, b"a", {"a": 1}, range(3), [1], ["a", None], [["a"]]], ids=repr)
def test_what_is_no_text(value: Any) -> None:
    with pytest.raises(InputError, match=r"^A prompt must be a string, not "):
        texts_of("A prompt", value, "Give a string.")


def test_texts() -> None:
    assert texts_of("p", "a", "") == ["a"]
    assert texts_of("p", ("a", "b"), "") == ["a", "b"]
    with pytest.raises(InputError, match="not valid Unicode"):
        text_of("p", "\ud800")


def test_what_will_be_called_is_looked_at() -> None:
    for nothing in (None, threading.Event()):
        require_methods("cancel", nothing, ("is_set",), "")
    require_callable("callback", print, "")
    with pytest.raises(InputError, match="cancel must have is_set, which True lacks"):
        require_methods("cancel", True, ("is_set",), "Give a threading.Event.")
    with pytest.raises(InputError, match="callback must be a function, not 3"):
        require_callable("callback", 3, "")


def test_long_values_are_shortened() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert len(shown(list(range(10**6)))) < 100
    assert len(shown(np.zeros((1000, 1000)))) < 100


@dataclass(frozen=True)
class Options:
    size: int = 1
    share: float = 0.5
    name: str | None = None
    on: bool = False
    kind: Literal["a", "b"] = "a"
    folder: Path = Path("x")
    bounds: tuple[int, int, int] | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle_fields(self)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "1"}, "size must be a whole number, not '1'"),
        ({"size": True}, "size must be a whole number, not True"),
        ({"size": 1.0}, "size must be a whole number, not 1.0"),
        ({"size": None}, "size must be a whole number, not None"),
        ({"share": "0.5"}, "share must be a number, not '0.5'"),
        ({"share": 10**400}, "share must be a number"),
        ({"name": 3}, "name must be a string or None, not 3"),
        ({"on": 1}, "on must be True or False, not 1"),
        ({"kind": "c"}, "kind must be one of a, b, not 'c'"),
        ({"kind": ["a"]}, r"kind must be one of a, b, not \['a'\]"),
        ({"folder": 3}, "folder must be a path, not 3"),
        ({"folder": ""}, "folder must be a path, not ''"),
        ({"bounds": (1, 2)}, "bounds must be 3 values, each a whole number or None"),
        ({"bounds": (1, 2, "3")}, "bounds must be 3 values"),
        ({"names": "abc"}, "names must be several values, each a string, not 'abc'"),
    ],
)
def test_fields_of_another_type_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options(**fields)


def test_fields_are_settled() -> None:
    given = Options(np.int64(3), np.float32(0.5), "n", True, "b", "a/b", [1, 2, 3], ["x"])  # type: ignore[arg-type]
    assert given == Options(3, 0.5, "n", True, "b", Path("a/b"), (1, 2, 3), ("x",))
    assert type(given.size) is int and type(given.share) is float
    assert Options() == Options()
