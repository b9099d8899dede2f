"""Images over HTTP with the standard library: enroll a photo, then request images of that person.

Usage::

    python examples/5_web_handler.py --engines infid-engines [--port 8080]

    curl --data-binary @photo.png localhost:8080/people                 # {"person": "5f1c…"}
    curl -d '{"person": "5f1c…", "prompt": "a photo of a person at night"}' localhost:8080/pictures -o night.png

It only listens on this machine, and has neither TLS nor users: put it behind a server that does. One process holds one
set of engines, which serves one generation at a time; requests beyond the queue are asked to try again.
"""

from __future__ import annotations

import argparse
import io
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from infid_engines.errors import InfidError, InputError
from infid_export import Person, Pipeline

MAX_BYTES = 20_000_000  # of a photo; checked before anything is read
WAITING = 8  # generations that may wait for the engines


class PictureServer(ThreadingHTTPServer):
    """Holds the engines, the people, and the slots of the queue.

    Args:
        address: host and port.
        pipe: generates the images; calls from several threads take turns.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], pipe: Pipeline) -> None:
        super().__init__(address, Handler)
        self.pipe = pipe
        self.people: dict[str, Person] = {}  # in memory only: a face is personal data
        self.places = threading.BoundedSemaphore(WAITING)


class Handler(BaseHTTPRequestHandler):
    """POST /people takes a photo; POST /pictures takes a person and a prompt."""

    server: PictureServer

    def do_POST(self) -> None:
        """Answer a request; errors that the client can fix get 400, with a sentence that says how."""
        stated = self.headers.get("Content-Length", "")
        length = int(stated) if stated.isdecimal() else 0
        if not 0 < length <= MAX_BYTES:
            return self._send_json(413, {"error": f"Send 1 to {MAX_BYTES} bytes."})
        body = self.rfile.read(length)
        answers = {"/people": self._enroll, "/pictures": self._generate}
        if self.path not in answers:
            return self._send_json(404, {"error": f"There is no {self.path}."})
        if not self.server.places.acquire(blocking=False):
            return self._send_json(429, {"error": "The queue is full; try again."})
        try:
            return answers[self.path](body)
        except InputError as error:
            return self._send_json(400, {"error": error.problem, "fix": error.fix})
        except InfidError as error:
            return self._send_json(500, {"error": error.problem})
        finally:
            self.server.places.release()

    def _enroll(self, photo: bytes) -> None:
        name = secrets.token_urlsafe(16)  # unguessable: anyone who knows it can generate the person
        self.server.people[name] = self.server.pipe.enroll(photo)
        self._send_json(200, {"person": name})

    def _generate(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
            person, prompt = self.server.people[asked["person"]], asked["prompt"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError("The request has no known person and prompt.", fix="Enroll a photo first.") from error
        (image,) = self.server.pipe.generate(prompt, person, seed=asked.get("seed"))
        encoded = io.BytesIO()
        image.save(encoded, format="PNG")
        self._send(200, "image/png", encoded.getvalue())

    def _send_json(self, status: int, document: dict[str, str]) -> None:
        self._send(status, "application/json", json.dumps(document).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Load the engines and serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--engines", type=Path, default=Path("infid-engines"))
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    with Pipeline.load(arguments.engines) as pipe, PictureServer(("127.0.0.1", arguments.port), pipe) as server:
        print(f"http://127.0.0.1:{server.server_port}: {pipe.choice}")
        server.serve_forever()


if __name__ == "__main__":
    main()
