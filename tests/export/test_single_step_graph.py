"""`single_step` is what a model with one stream is built with, and is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_face_models import quick_faces
from small_ip_adapter import TOKENS, adapter_weights, image_features, keys_and_values, relative, with_adapter

from infid_engines.device import CPU
from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_engines.onnxruntime_backend import OnnxRuntimeBackend
from infid_engines.progress import SilentReporter
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import BuildReport, build
from infid_export.export.graphs.graph import GraphForm
from infid_export.export.graphs.single_step import SINGLE_STEP
from infid_export.export.inspection import read_graph
from infid_export.export.parity_case import parity_face
from infid_export.export.plan import make_plan
from infid_export.export.writers import Writers
from infid_export.model.config import IdentityConfig
from infid_export.model.opening import open_source
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import RandomSource
from infid_export.runtime.denoise import Noise, denoise, seeded_noise
from infid_export.runtime.pipeline import Pipeline
from infid_export.sampling.samplers import sampler_table

PROMPT, STRENGTH, GUIDANCE = "a portrait in the rain", 0.7, 5.0


def single(folder: Path, **changes: Any) -> BuildOptions:
    """A build of the demo model with one stream."""
    usual = {"streams": "one", "backends": ("onnxruntime",), "height": 64, "width": 64, **quick_faces(folder.parent)}
    return BuildOptions(output=folder, **{**usual, **changes})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    return build(single(tmp_path_factory.mktemp("single") / "engines"))


def test_it_takes_the_place_of_the_joint_step(built: BuildReport) -> None:
    assert set(built.manifest.graphs) == {
        "text_encoder", "text_encoder_2", "identity_encoder", "single_step", "vae_decoder",
    }  # fmt: skip
    step = built.manifest.graphs["single_step"]
    inputs = {spec.name: spec.shape for spec in step.inputs}
    assert "style_strength" not in inputs
    assert not any(name.startswith("text_") for name in inputs)
    assert inputs["identity_latents"] == (1, 4, 16, 16)
    assert inputs["prompt_embeds"][0] == inputs["identity_keys"][0] == 2  # rows of the UNet
    assert step.weights == ("onnx/unet.safetensors",)


def test_the_graphs_and_a_whole_image_are_those_of_the_reference(built: BuildReport) -> None:
    assert {row.output for row in built.parity.rows if row.graph == "single_step"} == {
        "next_identity_latents", "next_identity_denoised",
    }  # fmt: skip
    assert built.parity.passed
    assert built.parity.image is not None
    assert built.parity.image.psnr_db > 100


def test_the_manifest_says_how_it_runs(built: BuildReport) -> None:
    manifest = Manifest.load(built.folder)
    config = manifest.model["config"]
    assert (config["streams"], config["self_attention"], config["cross_adain"]) == ("one", "plain", "off")
    assert manifest.defaults["style_strength"] == 0.0
    assert any("streams one: the identity weights are made for two" in note for note in manifest.notes)


def test_an_unchanged_rebuild_makes_nothing_and_two_streams_make_other_steps(built: BuildReport) -> None:
    options = single(built.folder, streams="one")
    assert not build(options).made
    plan = make_plan(single(built.folder, streams="two"))
    assert "onnx/denoise_step.onnx" in plan.artifacts()
    kept = {name for name, each in plan.artifacts().items() if built.manifest.files.get(name, each).key == each.key}
    assert {"onnx/unet.safetensors", "onnx/text_encoder.onnx", "onnx/vae_decoder.onnx"} <= kept


def test_the_identity_file_decides_unless_the_build_does(tmp_path: Path) -> None:
    """Weights that are made for one stream, as those of IP-Adapter are, and the same in two."""
    source = open_source("demo")
    modules: Any = source.load("identity", torch.float32)
    modules.config = source.config.with_choices(streams="one")
    modules.save(tmp_path / "identity.safetensors")
    found = {}
    for streams in (None, "two"):
        plan = make_plan(single(tmp_path / "engines", identity=tmp_path / "identity.safetensors", streams=streams))
        config = plan.source.config
        steps = [name for name in plan.options.graphs if name.endswith("_step")]
        notes = [note for note in plan.notes if note.startswith("streams")]
        found[streams] = (steps, config.self_attention, config.adain, config.cross_adain, notes)
    assert found[None] == (["single_step"], "plain", "off", "off", [])
    note = (
        "streams two: the identity weights are made for one, and not trained for two; look at the images before you "
        "rely on them"
    )
    assert found["two"] == (["denoise_step"], "mixed", "mean", "kv", [note])


def test_an_image_of_the_pipeline_is_that_of_the_reference(built: BuildReport) -> None:
    source = open_source("demo", choices={"streams": "one"})
    pipe = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = [PROMPT, "a knight"], seeded_noise([1, 2], (4, 16, 16))
    with Pipeline.load(built.folder) as engines:
        face = parity_face(224, 512)
        found = engines.generate(
            prompts, engines.encode(face), noise=noise, steps=3, identity_strength=STRENGTH, output_type="latents"
        )
        expected = pipe(
            prompts, pipe.encode_identity(face), height=64, width=64, num_inference_steps=3, guidance_scale=3.0,
            identity_strength=STRENGTH, latents=torch.from_numpy(noise), output_type="latent",
        ).images  # fmt: skip
    assert relative(torch.from_numpy(found), expected) <= 1e-5


@pytest.mark.parametrize("steps", [1, 10])
def test_the_engine_is_diffusers_with_an_ip_adapter(tmp_path: Path, steps: int) -> None:
    """On the weights of an IP-Adapter of four tokens, in fp32."""
    config = IdentityConfig(
        mapper="linear", clip_layer="pooled", clip_tokens=1, face_tokens=0, face_width=0, mapper_queries=TOKENS,
        cross_attention_dim=128, streams="one", self_attention="plain", adain="off", cross_adain="off",
    )  # fmt: skip
    source = RandomSource("demo", config=config)
    writers, form = Writers(source, single(tmp_path / "engines")), GraphForm(SINGLE_STEP)
    (tmp_path / "onnx").mkdir()
    with SilentReporter().stage("exporting") as stage:
        writers.weights("unet")(tmp_path, tmp_path / "onnx" / "unet.safetensors", stage)
        writers.graph(form)(tmp_path, tmp_path / form.file, stage)
    facts = read_graph(tmp_path / form.file)
    engine = OnnxRuntimeBackend().load(tmp_path / form.file, facts.inputs, facts.outputs, CPU)

    plain = InfiniteIDPipeline.from_source(RandomSource("demo"))
    weights = adapter_weights(plain.unet)
    adapted = with_adapter(plain, source.load("unet", torch.float32), weights, STRENGTH)
    cond, uncond, pooled, pooled_uncond = adapted.encode_prompt(PROMPT, do_classifier_free_guidance=True)
    keys, values = keys_and_values(weights)
    fixed = {
        "prompt_embeds": torch.cat([uncond, cond]), "pooled_prompt_embeds": torch.cat([pooled_uncond, pooled]),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2), "identity_keys": keys, "identity_values": values,
        "identity_strength": torch.tensor([STRENGTH]), "guidance": torch.tensor([GUIDANCE]),
    }  # fmt: skip
    noise = seeded_noise([1], (4, 16, 16))
    found = denoise(
        engine, {name: each.numpy() for name, each in fixed.items()}, {"identity": Noise(noise, None)}, [0],
        sampler_table(source.scheduler, steps), lambda index: {}, on_step=lambda *_: None, cancel=None,
    )  # fmt: skip
    expected = adapted(
        PROMPT, ip_adapter_image_embeds=[image_features()], height=64, width=64, num_inference_steps=steps,
        guidance_scale=GUIDANCE, latents=torch.from_numpy(noise), output_type="latent",
    ).images  # fmt: skip
    assert relative(torch.from_numpy(found), expected) <= 1e-5


@pytest.mark.parametrize(
    "changes", [{"guidance": False}, {"batch_range": (1, 2, 2), "height_range": (64, 64, 128), "height": None}]
)
def test_it_is_built_without_guidance_and_in_ranges(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = build(single(tmp_path / "engines", graphs=("single_step",), **changes))
    assert report.parity.passed
    inputs = {spec.name: spec.shape for spec in report.manifest.graphs["single_step"].inputs}
    assert ("guidance" in inputs) == ("guidance" not in changes)
    assert inputs["identity_latents"][0] == ([1, 2, 2] if "batch_range" in changes else 1)


BAD = {
    "a joint step": ({"graphs": ("denoise_step",)}, "denoise_step is built with --streams two", "--streams two"),
    "a template's": ({"graphs": ("default", "text_step")}, "The graph text_step is built with", "--streams two"),
    "a single step": (
        {"streams": "two", "graphs": ("single_step",)}, "The graph single_step is built with --streams one, but this "
        "model has two", "--streams one",
    ),
    "templates": ({"quantize_templates": True}, "--quantize-templates would have no effect", "--quantize-templates"),
    "kernels": ({"precision": "fp16", "kernels": "triton"}, "merge two streams, but this model has one", "native"),
    "attention": ({"self_attention": "mixed"}, "With one stream, self_attention must be plain", "two streams"),
    "an image": ({"graphs": ("vae_decoder",), "parity_image": "on"}, "needs the graphs .*single_step", "parity-image"),
    "a number": ({"streams": "three"}, "streams must be one of one, two or None", "another"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_with_the_streams_is_one_sentence(tmp_path: Path, case: str) -> None:
    changes, problem, fix = BAD[case]
    with pytest.raises(InputError, match=problem) as caught:
        make_plan(single(tmp_path / "engines", **changes))
    assert fix in caught.value.fix


def test_the_joint_step_of_the_same_weights_is_another_image(built: BuildReport) -> None:
    """Two streams are what the method adds, so their image differs from one stream's."""
    prompt, noise = PROMPT, torch.from_numpy(np.random.default_rng(1).standard_normal((1, 4, 16, 16), dtype=np.float32))
    images = []
    for streams in ("one", "two"):
        pipe = InfiniteIDPipeline.from_source(open_source("demo", choices={"streams": streams}))
        pipe.set_progress_bar_config(disable=True)
        face = pipe.encode_identity(parity_face(224, 512))
        settings = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
        images.append(pipe(prompt, face, latents=noise, **settings).images)
    assert relative(*images) > 1e-2
