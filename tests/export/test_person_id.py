"""Which choices of a build need people to be enrolled again."""

from __future__ import annotations

import pytest

from infid_export.export.build_options import BuildOptions
from infid_export.export.plan import make_plan


def model_id(**options: object) -> str:
    return str(make_plan(BuildOptions(backends=("onnxruntime",), **options)).model["id"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"zero_tokens": 2}, {"uncond_identity": "zero_image"}, {"precision": "fp16"}], ids=str
)
def test_what_changes_their_keys_and_values_does(options: dict[str, object]) -> None:
    assert model_id(**options) != model_id()


@pytest.mark.parametrize(
    "options", [{"zero_tokens": 0}, {"uncond_identity": "off"}, {"streams": "one"}, {"preset": "lightning-4"}], ids=str
)
def test_the_rest_does_not(options: dict[str, object]) -> None:
    assert model_id(**options) == model_id()
