from __future__ import annotations

import open_clip
import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModel

from infid_export.model.encoders import ImageEncoder
from infid_export.model.sources import RandomSource
from infid_export.model.tokenizers import clip_tokenizer_json

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def as_transformers(encoder: ImageEncoder, heads: int) -> CLIPVisionModel:
    """transformers' CLIP vision model with the same weights."""
    visual = encoder.visual
    patch = visual.conv1.kernel_size[0]
    width, layers = visual.conv1.out_channels, len(visual.transformer.resblocks)
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=224,
            patch_size=patch,
            hidden_act="gelu",
        )
    ).eval()
    weights = {
        "embeddings.class_embedding": visual.class_embedding,
        "embeddings.patch_embedding.weight": visual.conv1.weight,
        "embeddings.position_embedding.weight": visual.positional_embedding,
    }
    for part in ("weight", "bias"):
        weights[f"pre_layrnorm.{part}"] = getattr(visual.ln_pre, part)
        weights[f"post_layernorm.{part}"] = getattr(visual.ln_post, part)
    for index, block in enumerate(visual.transformer.resblocks):
        prefix = f"encoder.layers.{index}"
        for part in ("weight", "bias"):
            for name, rows in zip("qkv", getattr(block.attn, f"in_proj_{part}").chunk(3), strict=True):
                weights[f"{prefix}.self_attn.{name}_proj.{part}"] = rows
            weights[f"{prefix}.self_attn.out_proj.{part}"] = getattr(block.attn.out_proj, part)
            weights[f"{prefix}.layer_norm1.{part}"] = getattr(block.ln_1, part)
            weights[f"{prefix}.layer_norm2.{part}"] = getattr(block.ln_2, part)
            weights[f"{prefix}.mlp.fc1.{part}"] = getattr(block.mlp.c_fc, part)
            weights[f"{prefix}.mlp.fc2.{part}"] = getattr(block.mlp.c_proj, part)
    own = {name.removeprefix("vision_model."): name for name in model.state_dict()}
    loaded = model.load_state_dict({own[name]: tensor for name, tensor in weights.items()}, strict=False)
    assert not [name for name in loaded.missing_keys if "position_ids" not in name]
    assert not loaded.unexpected_keys
    return model


def check(encoder: ImageEncoder, heads: int) -> torch.Size:
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    normalized = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        found, expected = encoder(pixels), as_transformers(encoder, heads)(normalized).last_hidden_state
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    return found.shape


def test_demo_image_encoder_equals_transformers(source: RandomSource):
    assert check(source.load("image_encoder", torch.float32), heads=4) == (2, 50, 128)


@pytest.mark.slow
def test_vit_h_equals_transformers():
    encoder = RandomSource("random-sdxl").load("image_encoder", torch.float32)
    assert check(encoder, heads=16) == (2, 257, 1280)


@pytest.mark.parametrize(
    "text",
    [
        "a photo",
        "Hello,   WORLD! it's 2024",
        "",
        "emoji 😀 ünïcødé 中文",
        "don't we'll 3.14 #x@y a_b",
        "tab\tnew\nline",
        "x" * 400,
    ],
)
def test_tokenizer_equals_open_clip(text):
    found = Tokenizer.from_str(clip_tokenizer_json(pad="<|endoftext|>")).encode(text).ids
    expected = open_clip.SimpleTokenizer()([text])[0].tolist()
    length = expected.index(49407) + 1  # open_clip pads with 0
    assert found[:length] == expected[:length]
    assert set(found[length:]) <= {49407}


def test_second_tokenizer_reads_and_pads_with_its_padding_token():
    assert Tokenizer.from_str(clip_tokenizer_json(pad="!")).encode("a!").ids == [49406, 320, 0, 49407] + [0] * 73


def test_first_tokenizer_pads_with_the_end_token():
    assert Tokenizer.from_str(clip_tokenizer_json(pad="<|endoftext|>")).encode("a").ids[3:] == [49407] * 74
