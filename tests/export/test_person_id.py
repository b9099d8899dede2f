"""Which choices of a build need people to be enrolled again, and that the graph of a person is built with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_face_models import quick_faces

from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_zero_rows_and_zero_images_are_exported(tmp_path: Path, precision: str) -> None:
    report = build(
        BuildOptions(
            output=tmp_path / "engines", graphs=("identity_encoder",), backends=("onnxruntime",), zero_tokens=2,
            uncond_identity="zero_image", precision=precision, **quick_faces(tmp_path),
        )  # type: ignore[arg-type]
    )  # fmt: skip
    assert report.parity.passed
    shapes = {spec.name: spec.shape for spec in report.manifest.graph("identity_encoder").outputs}
    assert shapes["identity_keys"][1] == report.manifest.identity_tokens
