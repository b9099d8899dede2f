"""Customers of a mixed load: what one of them can do, well behaved or not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx

from benchmarks.serving.client import PROMPT
from benchmarks.serving.ledger import Ledger

GENERATIONS, EDITS, JOBS = "/v1/images/generations", "/v1/images/edits", "/v1/jobs/{id}"
_PEOPLE, _PERSON, _TEMPLATES, _TEMPLATE = "/v1/people", "/v1/people/{id}", "/v1/templates", "/v1/templates/{id}"
_STEPS = 5  # at most
_BUFFER, _SIP, _SIP_SECONDS = 4096, 4000, 0.05  # a slow reader's bytes; more than the server demands
_INVALID: tuple[Mapping[str, Any], ...] = (
    {"prompt": None}, {"steps": 0}, {"steps": 10_000}, {"size": "1x1"}, {"person": "nobody"}, {"seed": -1},
    {"template": "template_0"}, {"n": 10_000}, {"guidance": "much"}, {"unknown": 1}, {"output_format": "gif"},
)  # fmt: skip


@dataclass
class Customer:
    """Asks one server for one thing after the other.

    Args:
        server: the client.
        ledger: where the answers are counted.
        random: decides what it asks for.
        photo: of a person.
        person: id of an enrolled person.
        name: different from those of other customers.
    """

    server: httpx.AsyncClient
    ledger: Ledger
    random: Random
    photo: bytes
    person: str
    name: str
    asked: int = 0

    async def act(self) -> None:
        """Do one thing."""
        kind = self.random.choices(list(ACTIONS), [weight for weight, _ in ACTIONS.values()])[0]
        self.ledger.kinds[kind] += 1
        try:
            await ACTIONS[kind][1](self)
        except (httpx.HTTPError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            self.ledger.lost.append(f"{kind}: {type(error).__name__} {error}")

    def _body(self, **changes: Any) -> dict[str, Any]:
        """Return a valid request; half of them share their text stream with others."""
        self.asked += 1
        own: dict[str, Any] = {"seed": self.random.randrange(1 << 31), "steps": self.random.randint(1, _STEPS)}
        body = {
            "prompt": PROMPT,
            "person": self.person,
            **(own if self.random.random() < 0.5 else {"seed": 1, "steps": 3}),
        }
        return {**body, **changes}

    async def _request(self, method: str, route: str, images: bool = False, id: str = "", **content: Any) -> Any:
        """Send a request, count its answer, and return its document, or None if it has none to use."""
        response = await self.server.request(method, route.replace("{id}", id), **content)
        document: Any = None
        if response.headers["content-type"].startswith("application/json"):
            document = response.json()
        good = response.status_code < 300
        self.ledger.answered(method, route, response.status_code, len(document["data"]) if images and good else 0)
        if response.status_code == 429:
            await asyncio.sleep(float(response.headers["retry-after"]))
        return document if good else None

    async def generate(self) -> None:
        """Ask for one or two images."""
        await self._request("POST", GENERATIONS, images=True, json=self._body(n=self.random.randint(1, 2)))

    async def edit(self) -> None:
        """Send a photo with the request."""
        fields = {name: str(value) for name, value in self._body().items() if name != "person"}
        await self._request("POST", EDITS, images=True, data=fields, files={"image": ("photo.png", self.photo)})

    async def stream(self) -> None:
        """Read a stream to its end."""
        await self._read_stream(leave_after=None)

    async def hang_up(self) -> None:
        """Leave in the middle of a stream, or before an answer."""
        if self.random.random() < 0.5:
            await self._read_stream(leave_after=self.random.randint(1, 4))
            return
        asking = asyncio.ensure_future(self.server.post(GENERATIONS, json=self._body()))
        done, _ = await asyncio.wait({asking}, timeout=self.random.uniform(0.02, 1))
        if done:
            self._count_images(asking.result())
            return
        asking.cancel()
        await asyncio.wait({asking})
        self.ledger.dropped["POST", GENERATIONS] += 1

    async def cancel(self) -> None:
        """Cancel a request by its id."""
        id = f"{self.name}_{self.asked:08}"
        asking = asyncio.ensure_future(
            self.server.post(GENERATIONS, json=self._body(n=2), headers={"X-Request-Id": id})
        )
        await asyncio.sleep(self.random.uniform(0.01, 1))
        await self._request("DELETE", JOBS, id=id)
        self._count_images(await asking)

    async def template(self) -> None:
        """Make a template, ask for two images of it, and delete it."""
        settings = {"prompt": PROMPT, "seed": self.random.randrange(1 << 31), "steps": self.random.randint(1, _STEPS)}
        made = await self._request("POST", _TEMPLATES, json=settings)
        if made is not None:
            body = {"template": made["id"], "person": self.person, "n": 2}
            await self._request("POST", GENERATIONS, images=True, json=body)
            await self._request("DELETE", _TEMPLATE, id=made["id"])

    async def enroll(self) -> None:
        """Enroll a person, and erase the person again."""
        made = await self._request("POST", _PEOPLE, files={"image": ("photo.png", self.photo)})
        if made is not None:
            await self._request("GET", _PERSON, id=made["id"])
            await self._request("DELETE", _PERSON, id=made["id"])

    async def invalid(self) -> None:
        """Ask for what cannot be."""
        await self._request("POST", GENERATIONS, json=self._body(**self.random.choice(_INVALID)))

    async def look(self) -> None:
        """Read lists and settings."""
        await self._request("GET", self.random.choice(("/healthz", "/readyz", _PEOPLE, _TEMPLATES, "/v1/settings")))

    async def read_slowly(self) -> None:
        """Read a stream with previews through a small buffer, sip by sip."""
        body = json.dumps(self._body(stream=True, partial_images=3, progress=True)).encode()
        url = self.server.base_url
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            own.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(own, (url.host, url.port))
            await loop.sock_sendall(own, head.encode() + body)
            answer = bytearray()
            while sip := await loop.sock_recv(own, _SIP):
                answer += sip
                await asyncio.sleep(_SIP_SECONDS)
        status = int(answer.split(b" ", 2)[1])
        if status == 200 and not answer.endswith(b"0\r\n\r\n"):
            raise ValueError("the stream has no end")
        self.ledger.answered("POST", GENERATIONS, status, answer.count(b"event: image_generation.completed"))

    async def _read_stream(self, leave_after: int | None) -> None:
        body = self._body(stream=True, partial_images=self.random.randint(0, 3), progress=True)
        async with self.server.stream("POST", GENERATIONS, json=body) as response:
            events = list[str]()
            if response.status_code == 200:
                async for line in response.aiter_lines():
                    events += [line[len("event: ") :]] if line.startswith("event: ") else []
                    if leave_after is not None and len(events) >= leave_after:
                        self.ledger.left["POST", GENERATIONS] += 1
                        return
        completed = events.count("image_generation.completed")
        if response.status_code == 200 and not completed:
            raise ValueError(f"a stream without an image: {events[-1:]}")
        self.ledger.answered("POST", GENERATIONS, response.status_code, completed)

    def _count_images(self, response: httpx.Response) -> None:
        images = len(response.json()["data"]) if response.status_code == 200 else 0
        self.ledger.answered("POST", GENERATIONS, response.status_code, images)


ACTIONS: Mapping[str, tuple[int, Callable[[Customer], Awaitable[None]]]] = {
    "generate": (6, Customer.generate),
    "stream": (4, Customer.stream),
    "edit": (2, Customer.edit),
    "template": (2, Customer.template),
    "enroll and erase": (1, Customer.enroll),
    "invalid": (4, Customer.invalid),
    "cancel": (2, Customer.cancel),
    "hang up": (2, Customer.hang_up),
    "slow reader": (1, Customer.read_slowly),
    "look": (2, Customer.look),
}
