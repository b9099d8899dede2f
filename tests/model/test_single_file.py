"""A checkpoint in one file of SDXL's original layout: read exactly as diffusers reads it, and built."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint
from single_files import NETWORKS, SMALL, original_tensors, small_source, write_configurations, write_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from infid_engines.errors import InputError
from infid_export.export.build_estimate import estimate
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, verify
from infid_export.export.face_models import write_shipped
from infid_export.export.model_choice import source_of
from infid_export.model.checkpoints import single_file
from infid_export.model.checkpoints.single_file import SingleFileSource, read_model
from infid_export.model.opening import open_source
from infid_training.base_model import open_base

BUILT = ("text_encoder", "text_encoder_2", "denoise_step", "vae_decoder")  # each network is in one of them
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("single") / "small.safetensors", original_tensors(small_source()))


@pytest.fixture(scope="module")
def configurations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configurations(tmp_path_factory.mktemp("configurations") / "base")


def opened(parts: dict[str, Path], file: Path, **changed: object) -> SingleFileSource:
    source = open_source(str(file), identity=parts["identity"], image_encoder=str(parts["encoder"]), **changed)
    assert isinstance(source, SingleFileSource)
    return source


def by_diffusers(file: Path, configurations: Path, network: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if network in ("unet", "vae"):
        kind = UNet2DConditionModel if network == "unet" else AutoencoderKL
        module = kind.from_single_file(
            str(file), config=str(configurations), subfolder=network, torch_dtype=dtype, local_files_only=True
        )
    else:
        module = create_diffusers_clip_model_from_ldm(
            CLIPTextModel if network == "text_encoder" else CLIPTextModelWithProjection,
            load_single_file_checkpoint(str(file)),
            subfolder=network,
            config=str(configurations),
            torch_dtype=dtype,
            local_files_only=True,
        )
    return dict(module.named_parameters())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_is_the_one_that_diffusers_reads(parts, configurations, tmp_path, network, kind):
    file = write_file(tmp_path / "small.safetensors", original_tensors(small_source(), dtype=TYPES[kind]))
    source = opened(parts, file)
    expected = by_diffusers(file, configurations, network, torch.float32)
    streamed = dict(source.weights(network, torch.float32))
    loaded = dict(source.load(network, torch.float32).named_parameters())
    assert streamed.keys() == loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(streamed[name], value), name
        assert torch.equal(loaded[name], value), name


def test_configurations_follow_from_shapes(parts, file):
    found = opened(parts, file).architecture
    for network in NETWORKS:
        assert found.component(network) == SMALL.component(network)


def test_it_builds_with_parity_and_is_verified_again(parts, file, tmp_path):
    recognizer = tmp_path / "recognizer.onnx"
    write_shipped("recognizer", recognizer)
    options = BuildOptions(
        output=tmp_path / "engines",
        model=str(file),
        identity=parts["identity"],
        image_encoder=str(parts["encoder"]),
        recognizer=recognizer,
        prediction="v",
        zero_snr=True,
        backends=("onnxruntime",),
        graphs=BUILT,
        height=64,
        width=64,
    )
    plan, rows = estimate(options)
    assert not (tmp_path / "engines").exists() and rows
    report = build(options)
    assert report.parity.passed
    assert {row.graph for row in report.parity.rows} == set(BUILT)
    scheduler, defaults = report.manifest.scheduler, report.manifest.defaults
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert defaults["spacing"] == "trailing"
    assert any(note.startswith("prediction v: as --prediction says") for note in report.notes)
    assert plan.notes == report.notes[: len(plan.notes)]
    assert build(options).made == {}
    assert verify(tmp_path / "engines").passed
    other = build(replace(options, prediction="epsilon", zero_snr=False))
    assert other.made == {} and other.manifest.scheduler["prediction_type"] == "epsilon"


def test_other_tensors_are_noted_and_those_of_a_network_rejected(parts, tmp_path):
    tensors = original_tensors(small_source())
    ignored = ("model_ema.decay", "alphas_cumprod", "denoiser.sigmas", "first_stage_model.loss.logvar",
               "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
               "conditioner.embedders.0.transformer.text_projection.weight",
               "conditioner.embedders.1.model.logit_scale", "conditioner.embedders.1.model.attn_mask")  # fmt: skip
    beside = {**tensors, **{name: torch.zeros(2) for name in ignored}}
    assert not any("not read" in note for note in opened(parts, write_file(tmp_path / "a", beside)).notes)
    beside["cond_stage_model.x"] = torch.zeros(2)
    (note,) = (note for note in opened(parts, write_file(tmp_path / "b", beside)).notes if "not read" in note)
    assert "cond_stage_model.x" in note
    inside = {**tensors, "model.diffusion_model.input_blocks.1.0.extra.weight": torch.zeros(2)}
    with pytest.raises(InputError, match=r"unet .*unexpected: model\.diffusion_model\.input_blocks\.1\.0\.extra"):
        opened(parts, write_file(tmp_path / "c", inside))


KEYS = {
    "unet": "model.diffusion_model.output_blocks.1.2.conv.weight",
    "vae": "first_stage_model.decoder.mid.attn_1.q.weight",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
    "text_encoder_2": "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias",
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_missing_or_bent_weight_is_named(parts, tmp_path, network):
    tensors, key = original_tensors(small_source()), KEYS[network]
    missing = {name: value for name, value in tensors.items() if name != key}
    with pytest.raises(InputError, match=f"The {network} weights of .*missing: {key}"):
        opened(parts, write_file(tmp_path / "missing", missing))
    bent = opened(parts, write_file(tmp_path / "bent", {**tensors, key: tensors[key][:-2].contiguous()}))
    with pytest.raises(InputError, match=f"The {network} weights of .*of another shape: {key}"):
        bent.empty(network)
    broken = tensors[key].clone()
    broken.view(-1)[0] = float("nan")
    damaged = opened(parts, write_file(tmp_path / "damaged", {**tensors, key: broken}))
    with pytest.raises(InputError, match=f"The {network} weights of .*{key} contains non-finite values"):
        list(damaged.weights(network, torch.float32))


def test_a_value_beyond_fp16_is_named(parts, tmp_path):
    tensors = original_tensors(small_source(), dtype=torch.float32)
    tensors[KEYS["vae"]].view(-1)[0] = 1e6
    source = opened(parts, write_file(tmp_path / "large.safetensors", tensors))
    assert len(dict(source.weights("vae", torch.float32)))
    with pytest.raises(InputError, match="reaches 1e\\+06, but fp16 ends at 65504"):
        source.load("vae", torch.float16)


def test_another_file_is_another_fingerprint(parts, file, tmp_path):
    before = opened(parts, file)
    other = write_file(tmp_path / "other.safetensors", original_tensors(small_source(1)))
    copy = shutil.copyfile(file, tmp_path / "copy.safetensors")
    for network in NETWORKS:
        assert opened(parts, copy).fingerprint(network) == before.fingerprint(network)
        assert opened(parts, other).fingerprint(network) != before.fingerprint(network)
    assert len({before.fingerprint(name) for name in (*NETWORKS, "identity", "image_encoder")}) == 6


def test_learned_words_and_other_widths_are_rejected(parts, tmp_path):
    tensors = original_tensors(small_source())
    words = "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"
    more = write_file(tmp_path / "words", {**tensors, words: torch.cat([tensors[words], tensors[words][:1]])})
    with pytest.raises(InputError, match="has 49409 word embeddings"):
        opened(parts, more)
    label = "model.diffusion_model.label_emb.0.0.weight"
    fewer = write_file(tmp_path / "label", {**tensors, label: tensors[label][:, 256:].contiguous()})
    with pytest.raises(InputError, match="SDXL's refiner has five"):
        opened(parts, fewer)


def test_training_starts_from_it_too(parts, file):
    source = open_base(str(file), str(parts["encoder"]), str(parts["identity"]))
    assert isinstance(source, SingleFileSource)
    assert read_model(str(file)).parts["unet"]["cross_attention_dim"] == 128
    marked = write_file(file.parent / "v.safetensors", {**original_tensors(small_source()), "v_pred": torch.zeros(0)})
    with pytest.raises(InputError, match="training needs a model that predicts the noise"):
        open_base(str(marked), str(parts["encoder"]), str(parts["identity"]))


def test_the_file_is_recognized_before_other_parts_are_asked_for(file, tmp_path):
    with pytest.raises(InputError, match="needs identity weights and an image encoder"):
        open_source(str(file))
    lora = write_file(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="is a LoRA, not a checkpoint"):
        open_source(str(lora))
    with pytest.raises(InputError, match="is a LoRA, not a checkpoint"):
        open_base(str(lora))


@pytest.mark.parametrize("lacking", ["vae", "unet"])
def test_a_network_that_is_given_may_be_missing(parts, tmp_path, monkeypatch, lacking):
    monkeypatch.setattr(single_file, "SDXL", SMALL)  # the configuration of a network that a file lacks
    left = [network for network in NETWORKS if network != lacking]
    path = write_file(tmp_path / "most.safetensors", original_tensors(small_source(), *left))
    given = write_file(tmp_path / "given.safetensors", original_tensors(small_source(1), lacking))
    options = BuildOptions(
        model=str(path), identity=parts["identity"], image_encoder=str(parts["encoder"]), backends=("onnxruntime",)
    )
    with pytest.raises(InputError, match=f"its {lacking} is missing") as caught:
        source_of(options)
    assert f"--{lacking}" in caught.value.fix
    source = source_of(replace(options, **{lacking: given}))
    for network in NETWORKS:
        whole = write_file(tmp_path / "whole.safetensors", original_tensors(small_source(int(network == lacking))))
        expected = dict(opened(parts, whole).weights(network, torch.float32))
        found = dict(source.weights(network, torch.float32))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert source.fingerprint(network)
    assert source.load("identity", torch.float32).config == source.config
