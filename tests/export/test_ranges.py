from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_face_models import quick_faces

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.export.folder_manifest import options_of
from infid_export.export.parity_case import parity_face
from infid_export.export.plan import make_plan
from infid_export.model.architectures import DEMO
from infid_export.model.opening import open_source
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.runtime.pipeline import Pipeline, seeded_noise

GRAPHS = (
    "text_encoder", "text_encoder_2", "identity_encoder", "denoise_step", "text_step", "identity_step", "vae_decoder",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranged") / "engines"
    options = BuildOptions(
        output=folder,
        backends=("onnxruntime",),
        graphs=GRAPHS,
        height_range=(64, 96, 128),
        width_range=(64, 64, 128),
        batch_range=(1, 2, 2),
        **quick_faces(folder.parent),
    )
    report = build(options)
    assert report.parity.passed
    assert not build(options).made
    return folder


@pytest.fixture(scope="module")
def reference() -> InfiniteIDPipeline:
    pipe = InfiniteIDPipeline.from_source(open_source("demo"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_ranges_are_in_the_manifest(ranged):
    manifest = Manifest.load(ranged)
    step = {spec.name: spec.shape for spec in manifest.graphs["denoise_step"].inputs}
    assert step["identity_latents"] == ([1, 2, 2], 4, [16, 24, 32], [16, 16, 32])
    assert step["identity_keys"][:2] == ([2, 4, 4], 54)
    assert step["timestep"] == (1,)
    assert manifest.graphs["vae_decoder"].outputs[0].shape == ([1, 2, 2], 3, [64, 96, 128], [64, 64, 128])
    assert (manifest.height, manifest.width, manifest.batch) == (96, 64, 2)
    shared = {spec.name: spec.shape for spec in manifest.graphs["identity_step"].inputs}
    assert shared["identity_latents"] == step["identity_latents"]
    assert shared["prompt_embeds"][0] == 2  # one template for all people


def test_a_ranged_engine_gives_what_the_reference_gives(ranged, reference):
    """The size is neither the usual one nor square."""
    face, noise = parity_face(224, 512), seeded_noise([1], (4, 32, 16))
    with Pipeline.load(ranged) as pipe:
        found = pipe.generate("a cat", pipe.encode(face), steps=2, height=128, width=64, noise=noise, output_type="np")
    expected = reference(
        "a cat",
        reference.encode_identity(face),
        height=128,
        width=64,
        latents=torch.from_numpy(noise),
        output_type="np",
        **replace(DEMO.sampling, steps=2).arguments(),
    ).images
    assert found.shape == expected.shape == (1, 128, 64, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)


SAMPLED = [
    ("ddim", "trailing", 4), ("euler", "leading", 4), ("euler", "karras", 30), ("dpmpp_2m", "linspace", 4),
    ("dpmpp_2m", "karras", 4), ("euler_a", "leading", 4), ("lcm", None, 4), ("tcd", None, 4),
]  # fmt: skip


@pytest.mark.parametrize(("sampler", "spacing", "steps"), SAMPLED)
def test_every_sampler_gives_what_the_reference_gives(
    ranged: Path, reference: InfiniteIDPipeline, sampler: str, spacing: str | None, steps: int
) -> None:
    face = parity_face(224, 512)
    settings = {"sampler": sampler, "spacing": spacing, "height": 64, "width": 64}
    with Pipeline.load(ranged) as pipe:
        found = pipe.generate(
            "a cat", pipe.encode(face), steps=steps, guidance=2.0, seed=1, output_type="latents", **settings
        )
    expected = reference(
        "a cat",
        reference.encode_identity(face),
        num_inference_steps=steps,
        guidance_scale=2.0,
        generator=np.random.default_rng(1),
        output_type="latent",
        **settings,
    ).images.numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize(("sampler", "spacing"), [("ddim", None), ("dpmpp_2m", "karras"), ("euler_a", None)])
def test_people_of_a_template_are_those_of_joint_steps(ranged: Path, sampler: str, spacing: str | None) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "spacing": spacing, "height": 128, "width": 64, "steps": 4}
    with Pipeline.load(ranged) as pipe:
        one = pipe.encode(parity_face(224, 512))
        two = replace(one, identity_values=-one.identity_values)
        template = pipe.template("a cat", seed=1, **settings)
        found = pipe.generate(template, [one, two, one], output_type="latents")  # a whole batch, and half of one
        for index, person in enumerate((one, two, one)):
            joint = pipe.generate("a cat", person, seed=1, output_type="latents", **settings)[0]
            assert np.linalg.norm(found[index] - joint) / np.linalg.norm(joint) < 1e-5


@pytest.mark.parametrize(
    ("height", "width", "message"), [(160, 64, "height of 64 to 128"), (64, 80, "width of 64 to 128")]
)
def test_sizes_outside_the_range_are_rejected(ranged, height, width, message):
    with Pipeline.load(ranged) as pipe:
        person = pipe.encode(parity_face(224, 512))
        with pytest.raises(InputError, match=message):
            pipe.generate("a cat", person, height=height, width=width)


def test_a_ranged_folder_is_verified_as_it_was_built(ranged):
    """With the options in its manifest everything in it has the keys that it was built with."""
    manifest = Manifest.load(ranged)
    planned = make_plan(options_of(manifest, ranged))
    assert {form.name: each.key for form, each in planned.graphs.items()} == {
        name: each.key for name, each in manifest.graphs.items()
    }
    assert planned.options.extents("largest") == (2, 128, 128)


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
