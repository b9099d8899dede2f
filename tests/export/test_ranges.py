from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_face_models import quick_faces

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, verify
from infid_export.export.parity_case import parity_face
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import open_source
from infid_export.runtime.pipeline import Pipeline, seeded_noise

GRAPHS = ("text_encoder", "text_encoder_2", "identity_encoder", "denoise_step", "vae_decoder")


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranged") / "engines"
    options = BuildOptions(
        output=folder,
        backends=("onnxruntime",),
        graphs=GRAPHS,
        height_range=(64, 96, 128),
        width_range=(64, 64, 128),
        batch_range=(1, 1, 2),
        **quick_faces(folder.parent),
    )
    report = build(options)
    assert report.parity.passed
    assert not build(options).made
    return folder


def test_ranges_are_in_the_manifest(ranged):
    manifest = Manifest.load(ranged)
    step = {spec.name: spec.shape for spec in manifest.graphs["denoise_step"].inputs}
    assert step["identity_latents"] == ([1, 1, 2], 4, [16, 24, 32], [16, 16, 32])
    assert step["identity_keys"][:2] == ([2, 2, 4], 54)
    assert step["timestep"] == (1,)
    assert manifest.graphs["vae_decoder"].outputs[0].shape == ([1, 1, 2], 3, [64, 96, 128], [64, 64, 128])
    assert (manifest.height, manifest.width, manifest.batch) == (96, 64, 1)


def test_a_ranged_engine_gives_what_the_reference_gives(ranged):
    """The size is neither the usual one nor square."""
    face, noise = parity_face(224, 512), seeded_noise([1], (4, 32, 16))
    with Pipeline.load(ranged) as pipe:
        found = pipe.generate("a cat", pipe.encode(face), steps=2, height=128, width=64, noise=noise, output_type="np")
    source = open_source("demo")
    reference = InfiniteIDPipeline.from_source(source)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        "a cat",
        reference.encode_identity(face),
        height=128,
        width=64,
        latents=torch.from_numpy(noise),
        output_type="np",
        **replace(source.architecture.sampling, steps=2).arguments(),
    ).images
    assert found.shape == expected.shape == (1, 128, 64, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "message"), [(160, 64, "height of 64 to 128"), (64, 80, "width of 64 to 128")]
)
def test_sizes_outside_the_range_are_rejected(ranged, height, width, message):
    with Pipeline.load(ranged) as pipe:
        person = pipe.encode(parity_face(224, 512))
        with pytest.raises(InputError, match=message):
            pipe.generate("a cat", person, height=height, width=width)


def test_a_ranged_folder_can_be_verified(ranged):
    assert verify(ranged).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height_range": (128, 64, 256)}, "three increasing numbers"),
        ({"height_range": (64, 100, 128)}, "multiples of 32"),
        ({"height_range": (64, 96, 128), "height": 96}, "both given"),
    ],
)
def test_impossible_ranges_are_rejected(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        build(BuildOptions(output=tmp_path / "engines", **options))
