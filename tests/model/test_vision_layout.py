"""Image encoders in the layout of transformers, which IP-Adapter's files come with."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_encoders import published_weights

from infid_engines.errors import InputError
from infid_export.model.checkpoints.loading import load_image_encoder
from infid_export.model.components import construct
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity import IdentityModules
from infid_export.model.opening import open_source
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import RandomSource
from infid_export.model.vision_layout import check_size, size_of

ACTIVATION = {"hidden_act": "gelu", "num_attention_heads": 4}


@pytest.fixture
def folder(source: RandomSource, tmp_path: Path) -> Path:
    """An `image_encoder` folder as it is published."""
    encoder: Any = source.load("image_encoder", torch.float32)
    save_file(published_weights(encoder), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ACTIVATION))
    return tmp_path


@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_both_layouts_give_the_same_network(source: RandomSource, folder: Path, whole: bool):
    path = folder if whole else folder / "model.safetensors"
    found = load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(path)).state_dict()
    expected = source.load("image_encoder", torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_text_encoder_and_positions_in_the_file_are_left_out(source: RandomSource, folder: Path):
    encoder: Any = source.load("image_encoder", torch.float32)
    others = {name: torch.zeros(3) for name in ("text_model.x", "logit_scale", "vision_model.embeddings.position_ids")}
    save_file({**published_weights(encoder), **others}, folder / "model.safetensors")
    load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(folder))


def test_a_missing_tensor_is_named(source: RandomSource, folder: Path):
    encoder: Any = source.load("image_encoder", torch.float32)
    kept = {name: value for name, value in published_weights(encoder).items() if "1.self_attn.k_proj.bias" not in name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"of another shape: visual\.transformer\.resblocks\.1\.attn\.in_proj_bias"):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(folder))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu', but the identity weights need 'gelu'"),
        ({"hidden_act": None}, "hidden_act = None, but"),
        ({"num_attention_heads": 2}, "num_attention_heads = 2, but the identity weights need 4"),
    ],
)
def test_a_network_that_computes_something_else_is_rejected(source, folder, changed, message):
    (folder / "config.json").write_text(json.dumps({"vision_config": {**ACTIVATION, **changed}}))
    with pytest.raises(InputError, match=message):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(folder))


def test_a_file_is_checked_by_the_configuration_beside_it(source, folder):
    file = str(folder / "model.safetensors")
    other = {"hidden_act": "quick_gelu", "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps({**other, "model_type": "clip_vision_model"}))
    with pytest.raises(InputError, match="hidden_act = 'quick_gelu'"):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", file)
    (folder / "config.json").write_text(json.dumps({**other, "model_type": "bert"}))  # of another file
    load_image_encoder(source.empty("image_encoder"), "ViT-H-14", file)


def test_an_absent_activation_is_the_one_of_transformers(source, folder):
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    with pytest.raises(InputError, match="hidden_act = 'quick_gelu'"):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(folder))


@pytest.mark.parametrize(
    ("given", "needed", "message"),
    [
        (
            "ViT-bigG-14",
            "ViT-H-14",
            "ViT-bigG-14 (48 layers of width 1664), but the identity weights need ViT-H-14 (32",
        ),
        (
            "ViT-H-14",
            "ViT-bigG-14",
            "ViT-H-14 (32 layers of width 1280), but the identity weights need ViT-bigG-14 (48",
        ),
        ("ViT-L-14", "ViT-H-14", "ViT-L-14 (24 layers of width 1024), but the identity weights need ViT-H-14 (32"),
    ],
)
@pytest.mark.parametrize("layout", ["visual.transformer.resblocks", "vision_model.encoder.layers"])
def test_a_mixed_up_encoder_is_named(given, needed, message, layout):
    sizes = {"ViT-L-14": (24, 1024), "ViT-H-14": (32, 1280), "ViT-bigG-14": (48, 1664)}
    layers, width = sizes[given]
    start = "visual." if layout.startswith("visual.") else "vision_model.embeddings."
    shapes = {f"{start}class_embedding": (width,), **{f"{layout}.{i}.x": (1,) for i in range(layers)}}
    with pytest.raises(InputError, match=re.escape(message)):
        check_size(Path("encoder.safetensors"), size_of(shapes), needed, sizes[needed])
    check_size(Path("encoder.safetensors"), size_of(shapes), given, sizes[given])


def test_a_mixed_up_encoder_is_rejected_when_the_model_is_opened(parts, source, folder):
    encoder: Any = source.load("image_encoder", torch.float32)
    cut = {name: value for name, value in published_weights(encoder).items() if "layers.3." not in name}
    save_file(cut, folder / "model.safetensors")
    with pytest.raises(
        InputError, match=r"\(3 layers of width 128\), but the identity weights need infid-test-vit \(4"
    ):
        open_source(str(parts["base"]), identity=parts["identity"], image_encoder=str(folder))


def test_another_kind_of_file_is_rejected_when_the_model_is_opened(parts, tmp_path):
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, lora)
    for file, kind in ((parts["identity"], "an identity file from infid-export"), (lora, "a LoRA")):
        with pytest.raises(InputError, match=f"is {kind}, not an image encoder"):
            open_source(str(parts["base"]), identity=parts["identity"], image_encoder=str(file))


def test_a_checkpoint_takes_a_folder_of_transformers(parts, source, folder):
    opened = open_source(str(parts["base"]), identity=parts["identity"], image_encoder=str(folder))
    found, before = opened.load("image_encoder", torch.float32).state_dict(), opened.fingerprint("image_encoder")
    expected = source.load("image_encoder", torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    encoder: Any = source.load("image_encoder", torch.float32)
    save_file({name: value + 1 for name, value in published_weights(encoder).items()}, folder / "model.safetensors")
    again = open_source(str(parts["base"]), identity=parts["identity"], image_encoder=str(folder))
    assert again.fingerprint("image_encoder") != before


def test_weights_that_read_no_image_need_no_image_encoder(parts, source, tmp_path):
    stored = read_config(parts["identity"])
    config: IdentityConfig = replace(stored, mapper="mlp", clip_layer="none", clip_tokens=0, clip_width=0)
    modules = IdentityModules(config, identity_blocks(construct("unet", source.architecture, source.config)))
    modules.save(tmp_path / "identity.safetensors")
    opened = open_source(str(parts["base"]), identity=tmp_path / "identity.safetensors")
    assert opened.load("identity", torch.float32).config.tokens == 4
    with pytest.raises(InputError, match="needs identity weights and an image encoder"):
        open_source(str(parts["base"]), identity=parts["identity"])
