from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from infid_export.model.architectures import DEMO, identity_config
from infid_export.model.checkpoints.folder import image_encoder_config
from infid_export.model.components import construct
from infid_export.model.encoders import ImageEncoder
from infid_export.model.sources import RandomSource
from infid_export.model.tokenizers import clip_tokenizer_json

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def as_transformers(encoder: ImageEncoder, heads: int) -> CLIPVisionModelWithProjection:
    """transformers' CLIP vision model with the same weights."""
    visual = encoder.visual
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=visual.conv1.out_channels,
            intermediate_size=visual.transformer.resblocks[0].mlp.c_fc.out_features,
            num_hidden_layers=len(visual.transformer.resblocks),
            num_attention_heads=heads,
            image_size=224,
            patch_size=visual.conv1.kernel_size[0],
            hidden_act="gelu",
            projection_dim=visual.proj.shape[1],
        )
    ).eval()
    own = {name.removeprefix("vision_model."): name for name in model.state_dict()}
    weights = {own[name.removeprefix("vision_model.")]: tensor for name, tensor in published_weights(encoder).items()}
    loaded = model.load_state_dict(weights, strict=False)
    assert not [name for name in loaded.missing_keys if "position_ids" not in name]
    assert not loaded.unexpected_keys
    return model


def published_weights(encoder: ImageEncoder) -> dict[str, torch.Tensor]:
    """The weights with the names in transformers' published files."""
    visual = encoder.visual
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
    named = {f"vision_model.{name}": value.detach().clone() for name, value in weights.items()}
    return {**named, "visual_projection.weight": visual.proj.detach().T.contiguous()}


def check(encoder: ImageEncoder, heads: int) -> torch.Size:
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    normalized = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        states = as_transformers(encoder, heads)(normalized, output_hidden_states=True)
        for layer, expected in (
            ("last", states.last_hidden_state),
            ("penultimate", states.hidden_states[-2]),
            ("pooled", states.image_embeds[:, None]),
        ):
            encoder.layer = layer
            found = encoder(pixels)
            assert float((found - expected).norm() / expected.norm()) < 1e-5, layer
            assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max())), layer
    return states.last_hidden_state.shape


def test_demo_image_encoder_equals_transformers(source: RandomSource):
    assert check(source.load("image_encoder", torch.float32), heads=4) == (2, 50, 128)


def test_an_image_encoder_of_bigg_shape_equals_transformers():
    """Of ViT-bigG/14, only the width and the depth are smaller: heads of 104 and the odd ratio of its MLP stay."""
    settings = {**image_encoder_config("ViT-bigG-14"), "width": 208, "layers": 3, "patch_size": 32}
    assert (settings["head_width"], settings["embed_dim"]) == (104, 1280)
    torch.manual_seed(0)
    encoder = construct("image_encoder", replace(DEMO, image_encoder=settings), identity_config(DEMO)).eval()
    assert isinstance(encoder, ImageEncoder)
    assert encoder.visual.transformer.resblocks[0].mlp.c_fc.out_features == 1024  # 4.9231 · 208
    assert check(encoder, heads=2) == (2, 50, 208)


def test_the_layer_that_a_mapper_reads_is_built(source: RandomSource):
    config = replace(source.config, mapper="linear", clip_layer="pooled", clip_tokens=1, clip_width=64, face_width=0,
                     face_tokens=0, mapper_queries=4)  # fmt: skip
    encoder = RandomSource("demo", config=config).load("image_encoder", torch.float32)
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 224, 224)).shape == (1, config.clip_tokens, config.clip_width)


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
