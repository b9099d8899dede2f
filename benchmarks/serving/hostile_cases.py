"""Hostile requests: hand-made ones, filled with random choices, and mutated valid ones."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, NamedTuple

from benchmarks.serving.client import PROMPT

_BOUNDARY = "frontier"
_LIMIT = 1_100_000  # bytes; more than the server takes as JSON
_ESCAPES = (
    "..", "../canary", "../../canary.txt", "..%2fcanary", "%2e%2e%2fcanary", "..%5ccanary", "%252e%252e%252fcanary",
    "..%c0%afcanary", "%2Fetc%2Fpasswd", "/etc/passwd", "canary%00", "%00", ".", "%2e", "~", "CON", "*", "?", "%ff%fe",
    "%",
    "%zz", "a" * 5000, "canary.safetensors", "....//canary", "..;/canary", "%e2%80%ae", "${HOME}", "{id}",
    "' OR 1=1 --",
)  # fmt: skip
_PLACES = (
    "/v1/people/{}",
    "/v1/templates/{}",
    "/v1/templates/{}/preview",
    "/v1/jobs/{}",
    "/page/{}",
    "/v1/models/{}",
    "/{}",
)
_METHODS = ("GET", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "POST", "get", "BREW", "G" * 300)
_NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "1" * 5000,
    "1e-999",
    "0.5",
    "-1",
    "9223372036854775808",
    "true",
)
_FIELDS = ("seed", "text_seed", "steps", "n", "guidance", "style_strength", "identity_strength", "partial_images",
"size",
           "person", "people", "template", "prompt", "negative_prompt", "stream", "output_format", "spacing", "sampler",
           "model", "output_compression", "progress")  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, "", "x" * 5000, [], {}, [[]], {"a": {}}, -1, 0, 1 << 70, 0.1, "\ud800", "\0", "1x1", "99999x99999",
    "auto",
    ["a"] * 100, "../canary", "lcm", "karras",
)  # fmt: skip


class Target(NamedTuple):
    """What hostile clients know.

    Args:
        host: of the server, with its port.
        token: that the server demands; empty if it demands none.
        person: id of an enrolled person.
        photo: of a person.
        steps: a number of steps that the server allows.
    """

    host: str
    token: str
    person: str
    photo: bytes
    steps: int


@dataclass(frozen=True)
class Case:
    """What a client sends.

    Args:
        content: the bytes.
        answered: whether the server must answer, because it is a complete request, however wrong.
        half_close: whether the client ends its direction of the connection afterwards.
        patience: seconds that the client waits for an answer before it ends its direction; 0 is for ever.
        leaves: whether the client closes the connection without reading.
        answers: requests in it.
    """

    content: bytes
    answered: bool = True
    half_close: bool = False
    patience: float = 0.0
    leaves: bool = False
    answers: int = 1


def request(
    target: Target,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str | None] | None = None,
    close: bool = True,
) -> bytes:
    """Return the bytes of a request; given headers replace the usual ones, and None leaves one out."""
    usual: dict[str, str | None] = {
        "Host": target.host, "Authorization": f"Bearer {target.token}" if target.token else None,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)), "Connection": "close" if close else None, **(headers or {}),
    }  # fmt: skip
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in usual.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + body


def image_request(target: Target, **changes: Any) -> dict[str, Any]:
    """Return the fields of a valid request for an image."""
    return {"prompt": PROMPT, "person": target.person, "seed": 1, "steps": target.steps, **changes}


def form(parts: list[tuple[str, bytes]], boundary: str = _BOUNDARY) -> bytes:
    """Return a multipart body of parts with their headers."""
    whole = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + body + b"\r\n" for head, body in parts)
    return whole + f"--{boundary}--\r\n".encode()


def file_part(content: bytes, name: str = "image") -> tuple[str, bytes]:
    """Return a part with a file."""
    return f'Content-Disposition: form-data; name="{name}"; filename="photo.png"\r\nContent-Type: image/png', content


def field_part(name: str, value: str) -> tuple[str, bytes]:
    """Return a part with a field."""
    return f'Content-Disposition: form-data; name="{name}"', value.encode("utf-8", "replace")


def png(width: int, height: int, chunks: tuple[tuple[bytes, bytes], ...] = (), packed: bytes = b"") -> bytes:
    """Return a PNG with a header of any size."""
    every = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IDAT", packed),
             (b"IEND", b""))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in every
    )


@cache
def _bomb() -> bytes:
    """50 MB in 50 kB."""
    return zlib.compress(b"\0" * 50_000_000, 9)


def _form_request(target: Target, body: bytes, path: str = "/v1/people", **headers: str) -> bytes:
    return request(
        target, "POST", path, body, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}", **headers}
    )


def _json_request(target: Target, body: bytes, random: Random, **headers: str) -> bytes:
    return request(target, "POST", random.choice(("/v1/images/generations", "/v1/templates")), body, headers)


def sizes(target: Target, random: Random) -> Case:
    """A stated length that is wrong, or a body that is too large."""
    body = json.dumps(image_request(target)).encode()
    path = "/v1/images/generations"
    kind = random.randrange(6)
    if kind == 0:  # more is stated than is sent
        head: dict[str, str | None] = {"Content-Length": str(len(body) + random.randint(1, 10_000))}
        return Case(request(target, "POST", path, body, head), answered=False, half_close=True)
    if kind == 1:
        head = {"Content-Length": random.choice(("-1", "x", "1, 2", "9" * 18, "9" * 5000, "0x10", "+5", ""))}
        return Case(request(target, "POST", path, body, head), answered=False)
    if kind == 2:
        return Case(request(target, "POST", path, b'{"prompt": "' + b"x" * _LIMIT + b'"}'), answered=False)
    if kind == 3:  # chunks that never state how much there is
        size = random.choice((10, 70_000, _LIMIT))
        chunks = f"{size:x}\r\n".encode() + b"x" * size + b"\r\n0\r\n\r\n"
        head = {"Content-Length": None, "Transfer-Encoding": "chunked"}
        return Case(request(target, "POST", path, chunks, head), answered=size < _LIMIT)
    if kind == 4:
        head = {"Content-Length": None, "Transfer-Encoding": random.choice(("chunked", "gzip", "chunked, chunked"))}
        return Case(request(target, "POST", path, random.randbytes(50), head), answered=False, patience=1.0)
    return Case(request(target, "POST", path), answered=True)


def content_types(target: Target, random: Random) -> Case:
    """A body that is not what its type says."""
    kinds = (
        None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16",
        "multipart/form-data",
        "multipart/form-data; boundary=", f"multipart/form-data; boundary={'b' * 300}", "application/xml", "a/b; c=\"",
        "multipart/mixed; boundary=a", "image/png", "application/json\t", "*/*", "application/octet-stream",
    )  # fmt: skip
    body = random.choice(
        (json.dumps(image_request(target)).encode(), target.photo, b"", b"a=b&c=d", form([file_part(b"")]))
    )
    path = random.choice(("/v1/people", "/v1/images/edits", "/v1/images/generations", "/v1/templates"))
    return Case(request(target, "POST", path, body, {"Content-Type": random.choice(kinds)}))


def multiparts(target: Target, random: Random) -> Case:
    """A form that is damaged, or has too much of something."""
    photo, many = file_part(target.photo), random.randint(11, 60)
    charset = random.choice(
        ("utf-7", "unicode_escape", "utf-16", "rot13", "idna", "punycode", "x" * 100, "hex", "undefined")
    )
    name = "name\r\nContent-Type: text/plain; charset=" + charset
    whole = form([photo])
    bodies = (
        whole[: random.randrange(len(whole))], whole[random.randrange(50) :], form([photo], "other"), whole * 2, b"",
        form([photo] * many), form([photo, *(field_part(f"f{index}", "1") for index in range(many))]),
        form([field_part("image", "not a file")]), form([("Content-Disposition: form-data", b"nameless")]),
        form([("X: " + "y" * 70_000, b"")]), form([photo, field_part("name", "\x00\x1b[31m" * 50)]),
        form([(f'Content-Disposition: form-data; name="{name}"', b"+2AA-\\ud800\xff")]),
        form([photo, field_part("name", "a" * 9000)]),
        form([photo, field_part("face_index", random.choice(_NUMBERS)), field_part("name", "a")]),
        form([photo,
        (f'Content-Disposition: form-data; name="name"\r\nContent-Type: text/plain; charset={charset}',
        b"\\ud800+2AA-")]),
        form([file_part(target.photo, "../../canary")]), form([photo, field_part("people", "x")]), b"\r" * 200_000,
        f"--{_BOUNDARY}\r\n".encode() + b"\r\n-" * 50_000, form([photo])[:-4] + b"x" * 1000,
    )  # fmt: skip
    path = random.choice(("/v1/people", "/v1/images/edits"))
    return Case(_form_request(target, random.choice(bodies), path))


def photos(target: Target, random: Random) -> Case:
    """A photo that is none, or that would take much memory."""
    damaged = bytearray(target.photo)
    for _ in range(random.randint(1, 20)):
        damaged[random.randrange(len(damaged))] = random.randrange(256)
    side = random.choice((1, 6000, 30_000, 65_535, 1 << 31, (1 << 32) - 1))
    contents = (
        png(side, side), png(side, 1), png(0, 0), png(100, 100, packed=_bomb()),
        png(64, 64, ((b"zTXt", b"a\0\0" + _bomb()),)), png(64, 64, ((b"iCCP", b"a\0\0" + _bomb()),)),
        png(64, 64, ((b"eXIf", b"MM" * 900),)),
        png(64, 64, ((b"tEXt", b"a\0b"),) * 5000), png(64, 64, ((b"acTL", b"\xff" * 8),)),
        target.photo[: random.randrange(len(target.photo))],
        bytes(damaged), b"", b"\xff\xd8\xff" + random.randbytes(500), b"GIF89a" + random.randbytes(500),
        b"II*\0" + random.randbytes(200),
        b"MM\0*" + b"\xff" * 200, b"RIFF\xff\xff\xff\xffWEBPVP8 " + random.randbytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 65000 65000 255\n", b"BM" + random.randbytes(100),
        b"\0\0\0\x0cjP  \r\n\x87\n" + random.randbytes(200), b"P5\n#" + b"c" * 100_000,
    )  # fmt: skip
    path = random.choice(("/v1/people", "/v1/images/edits"))
    fields = [] if path.endswith("people") else [field_part("prompt", "a"), field_part("steps", str(target.steps))]
    return Case(_form_request(target, form([file_part(random.choice(contents)), *fields]), path))


def ids(target: Target, random: Random) -> Case:
    """An id that tries to leave its folder."""
    escape = random.choice(_ESCAPES)
    if random.random() < 0.3:
        body = image_request(target, **{random.choice(("person", "template")): escape})
        return Case(request(target, "POST", "/v1/images/generations", json.dumps(body).encode()))
    path = random.choice(_PLACES).format(escape).replace(" ", "%20")
    return Case(request(target, random.choice(_METHODS), path))


def tokens(target: Target, random: Random) -> Case:
    """A token that is missing or wrong."""
    wrong = random.choice((
        None, "", "Bearer", "Bearer ", "Bearer x", f"Basic {target.token}", f"Bearer {target.token[:-1]}",
        f"Bearer {target.token} x",
        f"bearer  {target.token}x", f"Bearer {'x' * 30_000}", "Bearer \xe9\xff",
        f"Bearer {target.token},{target.token}",
    ))  # fmt: skip
    path = random.choice(
        ("/v1/people", "/metrics", "/v1/settings", "/openapi.json", f"/v1/people/{target.person}", "/v1/models")
    )
    methods = ("GET", "POST", "DELETE") if target.token else ("GET", "POST")  # without tokens anybody may erase anybody
    return Case(request(target, random.choice(methods), path, b"", {"Authorization": wrong}))


def documents(target: Target, random: Random) -> Case:
    """JSON that is damaged, huge, nested, or of other types."""
    text = json.dumps(image_request(target))
    number = text[:-1] + f', "{random.choice(_FIELDS)}": {random.choice(_NUMBERS)}}}'
    body = image_request(target, **{random.choice(_FIELDS): random.choice(_VALUES)})
    if random.random() < 0.5:
        return Case(_json_request(target, json.dumps(body).encode(), random))
    bodies = (
        number, "[" * 100_000, '{"a":' * 50_000, "[]", "null", "1", '"text"', "{", text + "}", "\ufeff" + text,
        text.encode("utf-16"),
        text.encode() + b"\xff\xfe", text[:-1] + ', "\\ud800": 1}', text[:-1] + ', "__proto__": {}}',
        text[:-1] + ', "seed": 2, "seed": 3}',
        b"\0" * 100, json.dumps({"prompt": "x" * 900_000}),
        json.dumps({f"f{index}": index for index in range(20_000)}), "{" * 9,
        json.dumps([text] * 100), text.replace("seed", "Seed"), '{"prompt": "\\ud800", "steps": 2}',
    )  # fmt: skip
    chosen = random.choice(bodies)
    return Case(_json_request(target, chosen if isinstance(chosen, bytes) else chosen.encode("utf-8"), random))


def headers(target: Target, random: Random) -> Case:
    """Too many headers, too long ones, or damaged ones."""
    flood = {f"X-{index}": "y" * random.randint(1, 40) for index in range(random.choice((50, 500, 5000)))}
    odd: tuple[Mapping[str, str], ...] = (
        flood, {"X-Long": "y" * random.choice((10_000, 60_000, 200_000))}, {"X\0Y": "1"}, {"X Y": "1"}, {"": "1"},
        {"X": "a\r\n b"},
        {"X": "a\nb"}, {"X": "\x00"}, {"X": "\xe9"}, {"Cookie": "a=b; " * 500}, {"X-Request-Id": "../" * 20},
        {"X-Request-Id": "x" * 1000},
        {"Expect": "100-continue"}, {"Upgrade": "websocket", "Connection": "Upgrade"}, {"Upgrade": "h2c"},
        {"X-Forwarded-For": "evil"},
        {"Accept-Encoding": "gzip;q=nan"}, {"Content-Encoding": "gzip"}, {"If-Modified-Since": "never"},
        {"X-HTTP-Method-Override": "DELETE"},
    )  # fmt: skip
    chosen = random.choice(odd)
    return Case(request(target, "GET", "/v1/settings", b"", chosen), answered=False, patience=1.0)


def origins(target: Target, random: Random) -> Case:
    """A host or a page that is not the server's own."""
    odd = ("", "[", "]", "[::1", "evil.example", "evil.example:8000", f"{target.host}.evil.example",
    f"evil@{target.host}", "null", " ",
           "\xbd", "127.0.0.1:99999999", "127.0.0.1:x", "127.1", "0", "2130706433", "[::ffff:127.0.0.1]", "localhost",
           "x" * 5000)  # fmt: skip
    given = {random.choice(("Host", "Origin")): random.choice(("", "http://", "https://", "//")) + random.choice(odd)}
    if random.random() < 0.5:
        given = {"Origin": "http://evil.example", "Authorization": f"Bearer {target.token}"}
    method, path = random.choice(
        (("POST", "/v1/templates"), ("DELETE", "/v1/people/x"), ("GET", "/"), ("OPTIONS", "/v1/people"))
    )
    return Case(request(target, method, path, b"{}", given))


def ranges(target: Target, random: Random) -> Case:
    """A part of something, or a form of it that there is not."""
    odd = (
        "bytes=0-0",
        "bytes=-1",
        "bytes=5-1",
        "bytes=" + "0-0," * 500,
        "lines=1-2",
        "bytes=a-b",
        f"bytes=0-{'9' * 500}",
    )
    given = {
        "Range": random.choice(odd),
        "If-Range": "x",
        "Accept": random.choice(("", "x", "text/html;q=2", "*/*" * 500)),
    }
    return Case(request(target, "GET", random.choice(("/", "/page/app.js", "/metrics", "/openapi.json")), b"", given))


def connections(target: Target, random: Random) -> Case:
    """A connection that is used in an odd way."""
    good = request(target, "GET", "/healthz", close=False)
    image = request(target, "POST", "/v1/images/generations", json.dumps(image_request(target)).encode())
    cases = (
        Case(good + image, answers=2), Case(good * 20 + request(target, "GET", "/healthz"), answers=21),
        Case(image, answered=False, half_close=True), Case(image, answered=False, leaves=True),
        Case(image[: random.randrange(len(image))], answered=False, leaves=True),
        Case(good + b"\r\n\r\n\0\0", answered=False, answers=2, patience=0.5),
        Case(image[: random.randrange(len(image))], answered=False, half_close=True),
        Case(b"", answered=False, half_close=True),
        Case(_form_request(target, form([file_part(target.photo)]))[: random.randrange(2000)], answered=False,
        leaves=True),
        Case(image.replace(b'"seed"', b'"stream": true, "seed"').replace(b"Content-Length: ", b"Content-Length: 0"),
        answered=False, leaves=True),
    )  # fmt: skip
    return random.choice(cases)


def garbage(target: Target, random: Random) -> Case:
    """Bytes that are no HTTP/1.1."""
    odd = (
        random.randbytes(random.randint(1, 5000)), b"\x16\x03\x01\x02\x00\x01\x00" + random.randbytes(500),
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 1000,
        b"GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET " + b"/a" * 40_000 + b" HTTP/1.1\r\n\r\n", b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"\0" * 70_000,
        b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"POST /v1/people HTTP/1.1\r\nHost: {target.host}\r\nContent-Length: 5\r\n".encode()
        + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )  # fmt: skip
    return Case(random.choice(odd), answered=False, half_close=random.random() < 0.5, patience=0.5)


def mutated(target: Target, random: Random) -> Case:
    """A valid request with bytes changed, removed, repeated or put in."""
    valid = (
        request(target, "POST", "/v1/images/generations",
        json.dumps(image_request(target, stream=random.random() < 0.5)).encode()),
        request(target, "POST", "/v1/templates", json.dumps({"prompt": "a", "steps": target.steps}).encode()),
        _form_request(target, form([file_part(target.photo), field_part("name", "a")])),
        request(target, "GET", "/v1/people"),
    )  # fmt: skip
    content = bytearray(random.choice(valid))
    for _ in range(random.randint(1, 5)):
        place, kind = random.randrange(len(content)), random.randrange(4)
        length = random.choice((1, 1, 2, 20))
        if kind == 0:
            content[place] = random.randrange(256)
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        else:
            content[place:place] = random.randbytes(length)
    return Case(bytes(content), answered=False, patience=1.5)


def valid(target: Target, random: Random) -> Case:
    """A valid request."""
    body = image_request(target, stream=random.random() < 0.3, seed=random.randrange(1 << 31))
    return Case(request(target, "POST", "/v1/images/generations", json.dumps(body).encode()))


KINDS: Mapping[str, Callable[[Target, Random], Case]] = {
    "sizes": sizes, "content types": content_types, "forms": multiparts, "photos": photos, "ids": ids, "tokens": tokens,
    "JSON": documents, "headers": headers, "hosts and origins": origins, "ranges": ranges, "connections": connections,
    "garbage": garbage, "mutated": mutated, "valid": valid,
}  # fmt: skip
