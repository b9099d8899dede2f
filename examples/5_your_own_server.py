"""Your own FastAPI application around a pipeline: enroll a photo, then request images of that person.

`infid-export serve` is a ready server; this is where to start if your application needs other routes.

Usage::

    pip install "infid-export[cpu,serve]"
    python examples/5_your_own_server.py --engines infid-engines [--port 8080]

    curl --data-binary @photo.png localhost:8080/people                 # {"person": "5f1c…"}
    curl --json '{"person": "5f1c…", "prompt": "a photo of a person at night"}' localhost:8080/pictures -o night.png

It only listens on this machine, and has neither TLS nor users: put it behind a server that does. One process holds one
set of engines, which makes one image at a time. Requests beyond the queue are asked to try again, and a client that
hangs up stops its image.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel

from infid_engines.errors import BackendUnavailableError, InfidError, InputError
from infid_export import Person, Pipeline

MAX_BYTES = 20_000_000  # of a photo
PLACES = 8  # requests that may use the engines or wait for them
RETRY_SECONDS = 5
STATUS = ((InputError, 400), (BackendUnavailableError, 503), (InfidError, 500))
Result = TypeVar("Result")


class PictureRequest(BaseModel):
    """The body of POST /pictures.

    Args:
        person: from POST /people.
        prompt: what the image shows.
        seed: of the noise; None picks a random one.
    """

    person: str
    prompt: str
    seed: int | None = None


def make_app(folder: Path) -> FastAPI:
    """Return the application on an engine folder."""
    people: dict[str, Person] = {}  # in memory only: a face is personal data

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.places = asyncio.Semaphore(PLACES)
        with Pipeline.load(folder) as app.state.pipe:
            print(app.state.pipe.choice)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(InfidError)
    async def explain(request: Request, error: InfidError) -> JSONResponse:
        status = next(status for kind, status in STATUS if isinstance(error, kind))
        return JSONResponse({"error": error.problem, "fix": error.fix}, status)

    @app.post("/people")
    async def enroll(request: Request) -> dict[str, str]:
        photo = await body_of(request)
        name = secrets.token_urlsafe(16)  # unguessable: anyone who knows it can generate the person
        async with place(app):
            people[name] = await while_connected(request, app.state.pipe.enroll_async(photo))
        return {"person": name}

    @app.post("/pictures")
    async def generate(request: Request, asked: PictureRequest) -> Response:
        if asked.person not in people:
            raise HTTPException(404, "There is no such person; enroll a photo first.")
        async with place(app):
            call = app.state.pipe.generate_async(asked.prompt, people[asked.person], seed=asked.seed)
            (image,) = await while_connected(request, call)
        return Response(await asyncio.to_thread(png, image), media_type="image/png")

    return app


async def body_of(request: Request) -> bytes:
    """Return the body of a request, of limited size."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"A photo may have {MAX_BYTES} bytes.")
    return bytes(body)


@asynccontextmanager
async def place(app: FastAPI) -> AsyncIterator[None]:
    """Hold a place in the queue."""
    if app.state.places.locked():
        raise HTTPException(429, "The queue is full; try again.", {"Retry-After": str(RETRY_SECONDS)})
    async with app.state.places:
        yield


async def while_connected(request: Request, call: Coroutine[None, None, Result]) -> Result:
    """Await a call, and cancel it when the client hangs up. The body of the request must have been read."""
    task = asyncio.ensure_future(call)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await task
    except asyncio.CancelledError:
        if not watching.done():  # the server stops
            raise
        raise HTTPException(499, "The client has hung up.") from None
    finally:
        watching.cancel()


def png(image: Image.Image) -> bytes:
    """Return an image as the content of a PNG file."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--engines", type=Path, default=Path("infid-engines"))
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    uvicorn.run(make_app(arguments.engines), port=arguments.port)


if __name__ == "__main__":
    main()
