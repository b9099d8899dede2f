"""Format-aware ways to damage bytes and JSON; every choice comes from one seeded generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# Values that break length fields, counts and sizes.
NUMBERS = (0, 1, -1, 7, 127, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64 - 1, 10**30)
TEXTS = (
    "", " ", "\0", "\ud800", "..", "../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "two\nlines", "x" * 300,
    "y" * 5000, "NaN", "null", "1", "é" * 40, "\u202e", "🙂", "%s%n", "{}", "float16", "F64", "cpu",
)  # fmt: skip
_FLOATS = (0.5, -0.0, 1e308, -1e-320)
_DEPTH = 20_000  # far beyond Python's recursion limit


def damaged(random: Random, content: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """Return bytes that differ from the content."""
    for _ in range(20):
        found = content
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            found = random.choice(_BYTE_DAMAGES)(random, found, others or (content,))
        if found != content:
            return found
    return content + b"\0"


def _flip(random: Random, content: bytes, _: tuple[bytes, ...]) -> bytes:
    found = bytearray(content or b"\0")
    for _ in range(random.choice((1, 1, 3, 16))):
        found[_place(random, len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _cut(random: Random, content: bytes, _: tuple[bytes, ...]) -> bytes:
    return content[: random.choice((0, 1, 8, len(content) // 2, len(content) - 1, random.randrange(len(content) + 1)))]


def _lengthen(random: Random, content: bytes, _: tuple[bytes, ...]) -> bytes:
    return content + random.choice((b"\0" * 1000, content, random.randbytes(64), b"\xff"))


def _splice(random: Random, content: bytes, others: tuple[bytes, ...]) -> bytes:
    other = random.choice(others)
    start, end = sorted(random.randrange(len(other) + 1) for _ in range(2))
    place = random.randrange(len(content) + 1)
    return content[:place] + other[start:end] + content[place + random.choice((0, end - start)) :]


def _overwrite_number(random: Random, content: bytes, _: tuple[bytes, ...]) -> bytes:
    size = random.choice((1, 2, 4, 8))
    place = _place(random, max(1, len(content) - size))
    number = random.choice(NUMBERS) % (1 << (8 * size))
    return content[:place] + number.to_bytes(size, random.choice(("little", "big"))) + content[place + size :]


def _blank(random: Random, content: bytes, _: tuple[bytes, ...]) -> bytes:
    start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + bytes([random.choice((0, 255))]) * (end - start) + content[end:]


def _remove(random: Random, content: bytes, _: tuple[bytes, ...]) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.choice((1, 4, 512)) :]


_BYTE_DAMAGES = (_flip, _flip, _cut, _lengthen, _splice, _overwrite_number, _blank, _remove)


def _place(random: Random, length: int) -> int:
    """Return a position, half of the time near the start, where headers are."""
    return random.randrange(min(length, 128) if random.random() < 0.5 else length)


def damaged_json(random: Random, value: Any) -> Any:
    """Return a JSON value in which some entries are missing, odd, renamed, duplicated or of another type."""
    found = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        parent, key = _node(random, found)
        if parent is None:
            return odd_value(random)
        _damage_entry(random, parent, key)
    return found


def _damage_entry(random: Random, parent: Any, key: Any) -> None:
    what = random.random()
    if what < 0.2:
        del parent[key]
    elif what < 0.3 and isinstance(parent, dict):
        parent[random.choice((*TEXTS, f"{key}x", str(key).upper()))] = parent.pop(key)
    elif what < 0.4 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif what < 0.55 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = random.choice(
            (parent[key] + 1, -parent[key], parent[key] * 1000, float(parent[key]), str(parent[key]))
        )
    else:
        parent[key] = odd_value(random)


def odd_value(random: Random) -> Any:
    plain = (None, True, False, [], {}, [[]], [None], {"": None}, *NUMBERS, *_FLOATS, *TEXTS)
    return copy.deepcopy(random.choice(plain))


def _node(random: Random, value: Any) -> tuple[Any, Any]:
    """Return a random entry as its container and key; nested entries are as likely as outer ones."""
    entries: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        entries += [(container, key) for key in keys]
        waiting += [container[key] for key in keys if isinstance(container[key], dict | list)]
    if not entries or random.random() < 0.01:
        return None, None
    level = random.choice(entries[:12]) if random.random() < 0.3 else random.choice(entries)
    return level


def json_text(random: Random, value: Any) -> bytes:
    """Return a value as the bytes of a JSON file, sometimes in a form that JSON's grammar or UTF-8 does not allow."""
    text = json.dumps(value, indent=random.choice((None, 1)))
    what = random.random()
    if what < 0.7:
        return text.encode(errors="surrogatepass")
    if what < 0.76:
        return text.replace(
            ": ", f": {random.choice(('NaN', 'Infinity', '-Infinity', '1e999', '01', '0x1'))}, ", 1
        ).encode()
    if what < 0.8:
        nested = random.choice(("[" * _DEPTH + "]" * _DEPTH, '{"a":' * _DEPTH + "1" + "}" * _DEPTH, "[" * _DEPTH))
        return text.replace("{", f'{{"deep": {nested}, ', 1).encode()
    if what < 0.84:
        return text.replace("{", f'{{"schema_version": {random.choice(NUMBERS)}, ', 1).encode()
    if what < 0.88:
        return b"\xef\xbb\xbf" + text.encode()
    if what < 0.9:
        return text.encode(random.choice(("utf-16", "utf-32-le")))
    return damaged(random, text.encode(errors="surrogatepass"))
