"""A server of engines with one stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, options_of, running
from tiny_engines import write_folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = write_folder(tmp_path_factory.mktemp("single") / "engines", streams="one")
    with running(options_of(folder)) as server:
        yield server


def test_an_image_is_the_pipelines(single: Running) -> None:
    anna = single.enroll()
    answer = single.post("/v1/images/generations", json={"prompt": "a knight", "person": anna, "seed": 7, "n": 3})
    assert answer.status_code == 200, answer.text
    assert [each["seed"] for each in answer.json()["data"]] == [7, 8, 9]
    assert not single.log


def test_the_settings_say_so(single: Running, tiny: Running) -> None:
    settings, joint = (server.get("/v1/settings").json() for server in (single, tiny))
    assert (settings["streams"], settings["templates"], settings["defaults"]["style_strength"]) == ("one", False, 0.0)
    assert (joint["streams"], joint["templates"]) == ("two", True)


@pytest.mark.parametrize("given", [{"style_strength": 0.5}, {"text_seed": 3}])
def test_what_a_text_stream_would_read_is_rejected(single: Running, given: dict[str, Any]) -> None:
    answer = single.post("/v1/images/generations", json={"prompt": "a", "person": single.enroll(), **given})
    error = answer.json()["error"]
    (name,) = given
    assert (answer.status_code, error["param"]) == (400, name)
    assert f"{name} has no effect: these engines have no text stream." in error["message"]


def test_no_style_strength_is_what_it_has(single: Running) -> None:
    body = {"prompt": "a", "person": single.enroll(), "style_strength": 0, "seed": 1}
    assert single.post("/v1/images/generations", json=body).status_code == 200


def test_there_are_no_templates(single: Running) -> None:
    answer = single.post("/v1/templates", json={"prompt": "a knight"})
    assert answer.status_code == 400
    assert "--streams two --graph default --graph text_step --graph identity_step" in answer.json()["error"]["fix"]
