"""A session with `infid-export serve` through OpenAI's official client.

Usage::

    pip install openai
    infid-export serve infid-engines
    python examples/6_openai_client.py --photo photo.png [--url http://127.0.0.1:8000] [--token TOKEN]
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import openai

PROMPT = "a photo of a person wearing a red suit, at the beach"


def main() -> None:
    """Enroll a person, make images of all kinds, and print what the server answers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", default="none", help="one of those in the server's --token-file")
    parser.add_argument("-o", "--output", type=Path, default=Path("images"))
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)
    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key=arguments.token)
    photo = arguments.photo.read_bytes()

    def keep(name: str, encoded: str | None) -> str:
        path = arguments.output / name
        path.write_bytes(base64.b64decode(encoded or ""))
        return f"{path} ({path.stat().st_size:,} bytes)"

    print("models.list:", [model.id for model in client.models.list()])

    # what OpenAI's API does not have is called with the client's own post, get and delete
    person = client.post("/people", cast_to=dict[str, Any], files={"image": photo}, body={"name": "Anna"},
                         options={"headers": {"Content-Type": "multipart/form-data"}})  # fmt: skip
    print(f"people: {person['name']}, {person['faces'][0]['found']} face found, score {score(person):.2f}")
    own = {"person": person["id"], "seed": 7, "steps": 6}

    answer = client.images.generate(prompt=PROMPT, extra_body=own)
    print("images.generate:", keep("generate.png", answer.data[0].b64_json))

    for event in client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=own):
        name = event.type.rpartition(".")[2] + str(getattr(event, "partial_image_index", ""))
        print(f"images.generate, {event.type}:", keep(f"{name}.png", event.b64_json))

    answer = client.images.edit(image=photo, prompt="a pencil sketch of a person", extra_body={"seed": 7, "steps": 6})
    print("images.edit:", keep("edit.png", answer.data[0].b64_json))

    template = client.post(
        "/templates", cast_to=dict[str, Any], body={"prompt": "a flat poster of a person", "steps": 6}
    )
    answer = client.images.generate(
        prompt=template["prompt"], n=2, extra_body={"person": person["id"], "template": template["id"]}
    )
    for number, image in enumerate(answer.data):
        print("images.generate, from a template:", keep(f"template-{number}.png", image.b64_json))

    try:
        client.images.generate(prompt=PROMPT, size="1536x1024", extra_body=own)
    except openai.BadRequestError as error:
        print(f"{error.status_code}:", error.body["message"], error.body["fix"])

    stream = client.images.generate(
        prompt=PROMPT,
        stream=True,
        extra_body={**own, "steps": 100, "progress": True},
        extra_headers={"X-Request-Id": "a-long-job"},
    )
    for event in stream:
        if getattr(event, "step", 0) == 1:
            client.delete("/jobs/a-long-job", cast_to=dict[str, Any])
            break
    try:
        list(stream)
    except openai.APIError as error:
        print("jobs, cancelled:", error.message)

    print("people, erased:", client.delete(f"/people/{person['id']}", cast_to=dict[str, Any])["deleted"])


def score(person: dict[str, Any]) -> float:
    """Return the score of the face that was used."""
    face = person["faces"][0]
    return float(face["faces"][face["taken"]]["score"])


if __name__ == "__main__":
    main()
