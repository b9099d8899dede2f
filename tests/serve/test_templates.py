"""Templates over HTTP, in memory and in a folder."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from running import Running, options_of, running
from tiny_engines import SIDE


@pytest.mark.parametrize("kept", [False, True])
def test_templates_are_made_listed_shown_and_deleted(tiny_folder: Path, tmp_path: Path, kept: bool) -> None:
    options = options_of(tiny_folder, templates=tmp_path / "templates" if kept else None)
    body = {"prompt": "a sketch", "seed": 3, "steps": 4, "negative_prompt": "blurry", "size": "64x64"}
    with running(options) as server:
        answer = server.post("/v1/templates", json=body)
        made = answer.json()
        assert answer.status_code == 201
        assert {key: made[key] for key in body} == body
        assert (made["object"], made["sampler"], made["guidance"]) == ("template", "ddim", 5.0)
        assert made["bytes"] > 0
        assert server.post("/v1/templates", json=body).json()["id"] == made["id"]
        other = server.post("/v1/templates", json={"prompt": "an oil painting"}).json()
        assert {each["id"] for each in server.get("/v1/templates").json()["data"]} == {made["id"], other["id"]}
        assert server.get(f"/v1/templates/{made['id']}").json()["prompt"] == "a sketch"
        preview = server.get(f"/v1/templates/{made['id']}/preview")
        assert preview.headers["content-type"] == "image/png"
        assert Image.open(BytesIO(preview.content)).size == (SIDE, SIDE)
        assert server.metric("infid_template_bytes") > made["bytes"]
    if kept:
        with running(options) as server:  # a new process, or another server
            before = server.metric('infid_template_images_total{template="hit"}')
            person = server.enroll()
            asked = {"person": person, "template": made["id"]}
            assert server.post("/v1/images/generations", json=asked).status_code == 200
            assert server.metric('infid_template_images_total{template="hit"}') == before + 1
    with running(options) as server:
        made = server.post("/v1/templates", json=body).json()
        assert server.delete(f"/v1/templates/{made['id']}").json() == {
            "id": made["id"], "object": "template.deleted", "deleted": True,
        }  # fmt: skip
        for path in ("", "/preview"):
            assert server.get(f"/v1/templates/{made['id']}{path}").status_code == 404
        assert made["id"] not in [each["id"] for each in server.get("/v1/templates").json()["data"]]
    assert kept == (tmp_path / "templates").exists()


@pytest.mark.parametrize("id", ["template_" + "0" * 24, "..%2F..%2Fsecret", "x", "template_" + "g" * 24])
def test_unknown_templates(tiny: Running, id: str) -> None:
    assert tiny.get(f"/v1/templates/{id}").status_code == 404
    assert tiny.get(f"/v1/templates/{id}/preview").status_code == 404
    assert tiny.delete(f"/v1/templates/{id}").status_code == 404


def test_a_template_beyond_the_budget_says_what_would_do(tiny_folder: Path) -> None:
    with running(options_of(tiny_folder, template_budget=1000)) as server:
        answer = server.post("/v1/templates", json={"prompt": "a"})
        assert answer.status_code == 400
        assert "but the budget is 1,000" in answer.json()["error"]["message"]
        person = server.enroll()
        assert server.post("/v1/images/generations", json={"prompt": "a", "person": person}).status_code == 200


def test_a_damaged_file_of_a_template_is_no_template(tiny_folder: Path, tmp_path: Path) -> None:
    with running(options_of(tiny_folder, templates=tmp_path / "templates")) as server:
        made = server.post("/v1/templates", json={"prompt": "a"}).json()
        (tmp_path / "templates" / f"{made['id']}.json").write_text("{")
        assert server.get("/v1/templates").json()["data"] == []
        assert server.get(f"/v1/templates/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [({}, "prompt: Field required"), ({"prompt": "a", "steps": 200}, "At most 100 steps"),
     ({"prompt": "a" * 3000}, "The prompt has 3,000 characters"), ({"prompt": "a", "size": "8x8"}, "size"),
     ({"prompt": "a", "seed": 1 << 63}, "seed: Input should be less than")],
)  # fmt: skip
def test_bad_templates(tiny: Running, body: dict[str, object], message: str) -> None:
    answer = tiny.post("/v1/templates", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_the_number_of_templates_has_a_limit(fresh: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infid_export.serve.stores.templates._MOST", 1)
    made = fresh.post("/v1/templates", json={"prompt": "a"}).json()
    answer = fresh.post("/v1/templates", json={"prompt": "b"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (507, "There are 1 templates already.")
    fresh.delete(f"/v1/templates/{made['id']}")
    assert fresh.post("/v1/templates", json={"prompt": "b"}).status_code == 201
