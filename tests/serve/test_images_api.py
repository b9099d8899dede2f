"""OpenAI's images API, through the official client."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from running import Running, dot_png
from tiny_engines import PEOPLE, SIDE, TOKENS

from infid_export.runtime.person import stack


def image_of(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def same(encoded: str, image: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(image_of(encoded)), np.asarray(image)))


@pytest.fixture(scope="module")
def anna(tiny: Running) -> str:
    return tiny.enroll(name="Anna")


def test_there_is_one_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["infid"]
    assert client.models.retrieve("infid").owned_by == "infid-export"
    with pytest.raises(openai.NotFoundError, match="There is no model 'dall-e-3'"):
        client.models.retrieve("dall-e-3")


def test_an_image_is_the_pipelines(tiny: Running, client: openai.OpenAI, anna: str) -> None:
    own = {"person": anna, "seed": 7, "steps": 4, "guidance": 3.0, "style_strength": 0.5, "identity_strength": 0.7,
           "sampler": "euler", "spacing": "trailing", "negative_prompt": "blurry", "text_seed": 3}  # fmt: skip
    answer = client.images.generate(model="infid", prompt="a knight", size="64x64", extra_body=own)
    pipe, person = tiny.service.pipe, tiny.service.people.get(anna)
    (expected,) = pipe.generate("a knight", person, **{key: own[key] for key in own if key != "person"})
    assert answer.data is not None
    assert same(answer.data[0].b64_json, expected)
    (plain,) = pipe.generate("a knight", person, seed=7, steps=4)
    assert not same(answer.data[0].b64_json, plain)
    document = answer.model_dump()
    assert (document["size"], document["output_format"], document["background"]) == ("64x64", "png", "opaque")
    assert document["usage"]["input_tokens_details"] == {"text_tokens": 4, "image_tokens": PEOPLE * TOKENS}
    assert document["notes"] == []


def test_several_images_count_the_seed_up(tiny: Running, client: openai.OpenAI, anna: str) -> None:
    answer = client.images.generate(prompt="a knight", n=3, extra_body={"person": anna, "seed": 5})
    expected = tiny.service.pipe.generate(["a knight"] * 3, tiny.service.people.get(anna), seed=5)
    assert [data.model_dump()["seed"] for data in answer.data] == [5, 6, 7]
    assert all(same(data.b64_json, image) for data, image in zip(answer.data, expected, strict=True))


def test_without_a_seed_each_image_is_another(client: openai.OpenAI, anna: str) -> None:
    seeds = [client.images.generate(prompt="a", extra_body={"person": anna}).data[0].seed for _ in range(3)]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(("kind", "mode"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(client: openai.OpenAI, anna: str, kind: Any, mode: str) -> None:
    answer = client.images.generate(prompt="a", output_format=kind, extra_body={"person": anna, "seed": 1})
    image = image_of(answer.data[0].b64_json)
    assert (image.format, image.size) == (mode, (SIDE, SIDE))


def test_compression_makes_smaller_images(client: openai.OpenAI, anna: str) -> None:
    def size(quality: int) -> int:
        answer = client.images.generate(
            prompt="a", output_format="jpeg", output_compression=quality, extra_body={"person": anna, "seed": 1}
        )
        return len(answer.data[0].b64_json)

    assert size(5) < size(95)


def test_a_stream_has_previews_and_then_the_image(tiny: Running, client: openai.OpenAI, anna: str) -> None:
    stream = client.images.generate(
        prompt="a knight", stream=True, partial_images=2, extra_body={"person": anna, "seed": 7, "steps": 6}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    (expected,) = tiny.service.pipe.generate("a knight", tiny.service.people.get(anna), seed=7, steps=6)
    assert same(events[2].b64_json, expected)
    previews = [np.asarray(image_of(event.b64_json), float) for event in events[:2]]
    assert [image.shape for image in previews] == [(SIDE, SIDE, 3)] * 2
    assert not np.array_equal(*previews)
    assert events[2].usage.total_tokens > 0


def test_a_stream_of_several_images_says_which(client: openai.OpenAI, anna: str) -> None:
    stream = client.images.generate(
        prompt="a", n=3, stream=True, partial_images=1, extra_body={"person": anna, "seed": 7, "steps": 4}
    )
    seen = [(event.type.rpartition(".")[2], event.model_dump()["index"]) for event in stream]
    assert sorted(seen) == sorted((kind, index) for kind in ("partial_image", "completed") for index in range(3))


def test_progress_events_are_sent_to_those_who_ask(tiny: Running, anna: str) -> None:
    body = {"prompt": "a", "person": anna, "steps": 3, "stream": True, "progress": True}
    lines = tiny.post("/v1/images/generations", json=body).text.splitlines()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert kinds[-1] == "image_generation.completed"
    assert kinds[:-1] == ["infid.progress"] * (len(kinds) - 1)
    assert [f'"step": {step}' in "".join(lines) for step in (1, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize("count", [1, 2])
def test_an_edit_is_an_image_of_the_person_on_the_photos(tiny: Running, client: openai.OpenAI, count: int) -> None:
    photos = [dot_png(), dot_png(brightness=120)][:count]
    given: Any = photos[0] if count == 1 else photos
    answer = client.images.edit(image=given, prompt="a knight", extra_body={"seed": 7, "steps": 4})
    person = tiny.service.pipe.enroll(photos)
    (expected,) = tiny.service.pipe.generate("a knight", person, seed=7, steps=4)
    assert same(answer.data[0].b64_json, expected)


def test_an_edit_can_be_streamed_and_stores_nobody(tiny: Running, client: openai.OpenAI) -> None:
    before = tiny.get("/v1/people").json()
    stream = client.images.edit(
        image=dot_png(), prompt="a", stream=True, partial_images=1, extra_body={"steps": 4, "seed": 1}
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]
    assert tiny.get("/v1/people").json() == before


def test_people_are_put_into_one_image(tiny: Running, client: openai.OpenAI, anna: str) -> None:
    bert = tiny.enroll(dot_png(brightness=120), name="Bert")
    answer = client.images.generate(prompt="a", extra_body={"people": [anna, bert], "seed": 3})
    both = stack([tiny.service.people.get(id) for id in (anna, bert)])
    (expected,) = tiny.service.pipe.generate("a", both, seed=3)
    assert same(answer.data[0].b64_json, expected)
    with pytest.raises(openai.BadRequestError, match="not a multiple of 3"):
        client.images.generate(prompt="a", extra_body={"people": [anna] * 3})


def test_an_image_from_a_template(tiny: Running, client: openai.OpenAI, anna: str) -> None:
    made = tiny.post("/v1/templates", json={"prompt": "a sketch", "seed": 9, "steps": 4}).json()
    before = tiny.metric('infid_template_images_total{template="hit"}')
    answer = client.images.generate(prompt="a sketch", n=2, extra_body={"person": anna, "template": made["id"]})
    pipe, person = tiny.service.pipe, tiny.service.people.get(anna)
    template = pipe.template("a sketch", seed=9, steps=4)
    expected = pipe.generate(template, [person] * 2, seed=[9, 10])
    assert all(same(data.b64_json, image) for data, image in zip(answer.data, expected, strict=True))
    assert tiny.metric('infid_template_images_total{template="hit"}') == before + 2
    for field in ({"steps": 3}, {"prompt": "another"}, {"size": "64x64"}, {"guidance": 2.0}):
        body = {"person": anna, "template": made["id"], **field}
        answer = tiny.post("/v1/images/generations", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == f"The template decides {next(iter(field))}."
    assert tiny.post("/v1/images/generations", json={"person": anna, "template": made["id"]}).status_code == 200


BAD = {
    "no prompt": ({"prompt": None}, 400, "prompt", "The request has no prompt"),
    "no person": ({"person": None}, 400, "person", "needs either person or people"),
    "both": ({"people": ["x"]}, 400, "person", "needs either person or people"),
    "an unknown person": ({"person": "nobody"}, 404, None, "There is no person 'nobody'"),
    "a person outside": ({"person": "../secret"}, 404, None, "There is no person '../secret'"),
    "an unknown template": ({"template": "nothing"}, 404, None, "There is no template 'nothing'"),
    "another model": ({"model": "gpt-image-1"}, 404, "model", "There is no model 'gpt-image-1'"),
    "a url": ({"response_format": "url"}, 400, "response_format", "Input should be 'b64_json'"),
    "a mask": ({"mask": "x"}, 400, "mask", "There is no field 'mask'"),
    "transparency": ({"background": "transparent"}, 400, "background", "Input should be 'auto' or 'opaque'"),
    "a size": ({"size": "1024x1024"}, 400, None, "were built for a height of 64, not 1024"),
    "no size": ({"size": "large"}, 400, "size", "should match pattern"),
    "too many": ({"n": 11}, 400, "n", "At most 10 images per request, not 11"),
    "none": ({"n": 0}, 400, "n", "greater than or equal to 1"),
    "true": ({"n": True}, 400, "n", "must be a whole number"),
    "too many steps": ({"steps": 101}, 400, "steps", "At most 100 steps, not 101"),
    "a long prompt": ({"prompt": "a" * 2001}, 400, "prompt", "The prompt has 2,001 characters, more than 2,000"),
    "a long negative": ({"negative_prompt": "a" * 2001}, 400, "negative_prompt", "The negative_prompt has 2,001"),
    "a sampler": ({"sampler": "magic"}, 400, "sampler", "Input should be 'ddim'"),
    "a spacing": ({"sampler": "ddim", "spacing": "karras"}, 400, None, "karras"),
    "a seed": ({"seed": -1}, 400, "seed", "greater than or equal to 0"),
    "a strength": ({"style_strength": 1e9}, 400, "style_strength", "less than or equal to 10"),
    "previews": ({"partial_images": 4}, 400, "partial_images", "less than or equal to 3"),
    "png compression": ({"output_compression": 50}, 400, "output_compression", "PNG takes no output_compression"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_one_sentence_and_what_to_do(tiny: Running, anna: str, name: str) -> None:
    changes, status, param, message = BAD[name]
    body = {"prompt": "a", "person": anna, **changes}
    answer = tiny.post("/v1/images/generations", json={key: each for key, each in body.items() if each is not None})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert message in error["message"]
    assert error["fix"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 5000, b'{"prompt": "\\ud800", "person": "x"}', b"\xff\xfe"])
def test_bodies_that_are_no_request(tiny: Running, body: bytes) -> None:
    answer = tiny.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_photos_without_a_face_are_rejected(client: openai.OpenAI) -> None:
    empty = io.BytesIO()
    Image.new("RGB", (64, 64)).save(empty, format="PNG")
    with pytest.raises(openai.BadRequestError, match="Photo 2 of 2: No face was found"):
        client.images.edit(image=[dot_png(), empty.getvalue()], prompt="a")
    with pytest.raises(openai.BadRequestError, match="is not an image that can be read"):
        client.images.edit(image=b"no image", prompt="a")
    with pytest.raises(openai.BadRequestError, match="there is no face 3"):
        client.images.edit(image=dot_png(), prompt="a", extra_body={"face_index": 3})


def test_the_usual_fields_of_other_clients_are_taken(tiny: Running, anna: str) -> None:
    body = {"prompt": "a", "person": anna, "model": "infid", "quality": "high", "user": "u", "moderation": "low",
            "background": "auto", "size": "auto", "n": 1, "response_format": "b64_json", "style": "vivid"}  # fmt: skip
    assert tiny.post("/v1/images/generations", json=body).status_code == 200


def test_a_prompt_that_is_cut_is_noted(tiny: Running, anna: str) -> None:
    body = {"prompt": "a tall person " * 60, "person": anna}
    (note, *_) = tiny.post("/v1/images/generations", json=body).json()["notes"]
    assert note.startswith("a prompt is longer than 77 tokens")
