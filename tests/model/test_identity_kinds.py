"""What an identity file of another method says, and what it contains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_weights import CONFIGS, published, write_identity
from safetensors.torch import load_file, save_file

from infid_engines.errors import InputError
from infid_export.export.build_options import BuildOptions
from infid_export.export.plan import make_plan
from infid_export.model.config import CONFIG_KEY, IdentityConfig, read_config
from infid_export.model.identity import IdentityModules
from infid_export.model.mappers import MAPPERS
from infid_export.model.processors import identity_blocks
from infid_training.base_model import open_base

TOKENS = {"ip-adapter": 4, "ip-adapter-plus": 6, "faceid": 4, "faceid-plus": 4, "faceid-plusv2": 4, "instantid": 6}
NO_IMAGE = {"clip_layer": "none", "clip_tokens": 0, "clip_width": 0}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_mapper_has_the_published_names_and_shapes(family, source):
    blocks = identity_blocks(source.empty("unet"))
    mapper = MAPPERS[CONFIGS[family].mapper](CONFIGS[family])
    found = {name: value.shape for name, value in mapper.state_dict().items()}
    assert found == {name: value.shape for name, value in published(family, blocks)["image_proj"].items()}
    assert CONFIGS[family].tokens == TOKENS[family]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_file_is_read_and_written(family, source, tmp_path):
    blocks = identity_blocks(source.empty("unet"))
    path = write_identity(tmp_path / "identity.safetensors", family, blocks)
    modules = IdentityModules.load(path, blocks)
    modules.save(tmp_path / "again.safetensors")
    before, after = load_file(path), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_config(tmp_path / "again.safetensors") == CONFIGS[family]


def test_a_lora_in_the_file_is_no_part_of_the_modules(source, tmp_path):
    blocks = identity_blocks(source.empty("unet"))
    path = write_identity(tmp_path / "identity.safetensors", "faceid", blocks)
    tensors = {**load_file(path), "lora.mid_block.attentions.0.x.down.weight": torch.zeros(2, 3)}
    save_file(tensors, path, metadata={CONFIG_KEY: json.dumps(CONFIGS["faceid"].to_dict())})
    modules = IdentityModules.load(path, blocks)
    assert not [name for name in modules.state_dict() if "lora" in name]
    save_file({**tensors, "other.weight": torch.zeros(1)}, path,
              metadata={CONFIG_KEY: json.dumps(CONFIGS["faceid"].to_dict())})  # fmt: skip
    with pytest.raises(InputError, match=r"has unexpected tensors: other\.weight"):
        IdentityModules.load(path, blocks)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "ip-adapter",
            {"clip_layer": "last"},
            "linear takes clip_layer = pooled without a face embedding, not clip_lay",
        ),
        ("ip-adapter", {"face_width": 512, "face_tokens": 4}, "and face_width = 512"),
        ("ip-adapter", {"face_tokens": 4}, "face_tokens must be 0 for the mapper linear"),
        ("ip-adapter", {"clip_tokens": 2}, "A pooled image is 1 token"),
        ("ip-adapter", {"mapper_queries": 0}, "mapper_queries must be positive"),
        ("ip-adapter", {"mapper_layers": 4}, "mapper_layers must be 0"),
        ("ip-adapter-plus", {"mapper_heads": 3}, "mapper_hidden must be a multiple of mapper_heads"),
        (
            "ip-adapter-plus",
            {"clip_layer": "pooled"},
            "clip_layer = penultimate without a face embedding or clip_layer =",
        ),
        ("instantid", {"face_tokens": 4}, "face_tokens must be that"),
        ("instantid", {"uncond_identity": "zero_image"}, "zero_image needs a mapper that reads an image"),
        ("faceid", {"clip_width": 8}, "clip_width must be 0"),
        ("faceid", {"face_width": 0}, "mlp takes clip_layer = none with a face embedding"),
        ("faceid", {"shortcut": True}, "Only mlp_perceiver has a shortcut"),
        ("faceid-plus", {"perceiver_scale": 0.5}, "perceiver_scale has no effect without shortcut"),
        ("faceid-plusv2", {"mapper_hidden": 64}, "mapper_hidden must be cross_attention_dim"),
        ("faceid-plusv2", {"perceiver_scale": float("nan")}, "perceiver_scale must be a finite number"),
        ("faceid-plusv2", {"mapper": "other"}, "mapper must be one of infinite_id, linear,"),
        ("faceid-plusv2", {"crop": "round"}, "crop must be one of portrait, whole, aligned"),
    ],
)
def test_what_does_not_go_together_is_rejected(family, changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIGS[family], **changes)


def test_a_file_from_before_the_other_mappers_is_read():
    before = {"image_encoder": "ViT-H-14", "clip_tokens": 257, "face_tokens": 4}
    assert IdentityConfig.from_json(json.dumps(before)) == IdentityConfig()
    assert IdentityConfig().tokens == 261
    assert IdentityConfig().encoder_inputs == ("face_crop", "face_embedding")
    assert replace(CONFIGS["faceid"], **NO_IMAGE).encoder_inputs == ("face_embedding",)
    assert CONFIGS["ip-adapter"].encoder_inputs == ("face_crop",)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("faceid", {"image_encoder": "laion"}, "--image-encoder would have no effect: faceid weights read no image"),
        (
            "ip-adapter",
            {"recognizer": Path("r.onnx")},
            "--recognizer would have no effect: ip-adapter weights read no",
        ),
        ("ip-adapter", {"detector": "insightface", "face_models": Path("pack")}, "--face-models would have no effect"),
    ],
)
def test_an_option_that_the_weights_do_not_read_is_rejected(tmp_path, source, monkeypatch, family, changes, message):
    file = write_identity(tmp_path / "identity.safetensors", family, identity_blocks(source.empty("unet")))
    monkeypatch.setattr("infid_export.export.option_checks.BUILT_IN", {})  # the demo model has an encoder of its own
    with pytest.raises(InputError, match=message):
        make_plan(BuildOptions(tmp_path / "engines", identity=file, backends=("onnxruntime",), **changes))


@pytest.mark.parametrize(
    ("family", "unknown"),
    [
        ("faceid", "which recognizer they were trained with, so this is not"),
        ("ip-adapter", "which image encoder they were trained with, so this is not"),
        ("faceid-plus", "which recognizer and image encoder they were trained with, so these are not"),
    ],
)
def test_only_encoders_that_the_weights_read_are_noted(tmp_path, source, family, unknown):
    file = write_identity(tmp_path / "identity.safetensors", family, identity_blocks(source.empty("unet")))
    plan = make_plan(BuildOptions(tmp_path / "engines", identity=file, backends=("onnxruntime",)))
    assert f"identity weights {file}: they do not say {unknown} checked" in plan.notes


def test_weights_of_another_method_are_not_trained_further(tmp_path, source):
    file = write_identity(tmp_path / "identity.safetensors", "faceid", identity_blocks(source.empty("unet")))
    with pytest.raises(InputError, match="has faceid weights, which cannot be trained further"):
        open_base("demo", initial=str(file))
