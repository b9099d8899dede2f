"""The OpenAPI document: it lists what there is, and every request made from it gets an answer that it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from running import Running, dot_png, options_of, running
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from infid_export.serve.options import Limits
from infid_export.serve.routes.images import image_routes
from infid_export.serve.routes.people import people_routes
from infid_export.serve.routes.status import status_routes
from infid_export.serve.routes.templates import template_routes

_EXAMPLES = 30  # of each operation and mode
_NARROW = {
    "size",
    "n",
    "steps",
    "model",
    "output_compression",
    "people",
    "template",
    "image[]",
    "face_index",
    "partial_images",
}
_PAGE = {"/", "/page/{name}"}
_FORMS = {"/v1/people", "/v1/images/edits"}
_CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance
]  # fmt: skip


@pytest.fixture(scope="module")
def described(tiny_folder: Path) -> Iterator[Running]:
    """A server that draws few steps."""
    with running(options_of(tiny_folder, limits=Limits(steps=5, images=2))) as server:
        server.enroll()
        yield server


@pytest.fixture(scope="module")
def api(described: Running) -> Any:
    return schemathesis.openapi.from_url(f"{described.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_answers_are_as_described(described: Running, api: Any, mode: GenerationMode) -> None:
    """Requests that fit the document, and those that do not; two requests of a kind differ in all they may."""
    person = described.enroll()

    def known(case: Any) -> None:
        """Let a request name a person, and have a photo, that there are; leave out fields that rarely fit."""
        if isinstance(case.body, dict) and {"person", "image"} & case.body.keys():
            case.body = {name: value for name, value in case.body.items() if name not in _NARROW}
            case.body.update({"image": dot_png()} if "image" in case.body else {"person": person})

    for found in api.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=_EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            known(case)
            case.call_and_validate(checks=_CHECKS, timeout=20)

        with suppress(Unsatisfiable):  # without parameters, there is nothing that does not fit
            holds()
    seen = {(line["route"], line["status"] // 100) for line in map(json.loads, described.access)}
    assert {("/v1/images/generations", 4), ("/v1/images/edits", 4)} <= seen
    assert mode is GenerationMode.NEGATIVE or {("/v1/images/generations", 2), ("/v1/people", 2)} <= seen


def test_every_route_is_described_and_every_description_has_a_route(described: Running) -> None:
    documented = {
        (method.upper(), path) for path, operations in described.app.openapi()["paths"].items() for method in operations
    }
    routers = (routes(described.service) for routes in (image_routes, people_routes, template_routes, status_routes))
    there = {
        (method, route.path) for router in routers for route in router.routes if isinstance(route, Route)
        for method in route.methods or ()
    }  # fmt: skip
    assert documented == {(method, path) for method, path in there if path not in _PAGE}


def test_forms_describe_their_photos_and_fields(described: Running) -> None:
    paths = described.app.openapi()["paths"]
    bodies = {
        path: operations["post"]["requestBody"]["content"]
        for path, operations in paths.items()
        if "requestBody" in operations.get("post", {})
    }
    assert {path for path, content in bodies.items() if "multipart/form-data" in content} == _FORMS
    for path in _FORMS:
        properties = bodies[path]["multipart/form-data"]["schema"]["properties"]
        assert properties["image"]["format"] == "binary"
        assert properties["image[]"]["items"]["format"] == "binary"
        assert "face_index" in properties


def test_every_error_is_described_in_one_form(described: Running) -> None:
    document = described.app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            body = operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
            assert document["components"]["schemas"][body.rpartition("/")[2]]["required"] == ["error"]
