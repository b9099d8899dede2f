"""Names of layers in LoRA files."""

from __future__ import annotations

import pytest
from lora_files import layers_of

from infid_export.model.changes.lora_names import TensorName, layer_paths, parse_name
from infid_export.model.sources import RandomSource

# Names in published LoRAs for SDXL, and the layers that they stand for.
ORIGINAL = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_transformer_blocks_0_attn2_to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj":
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
    "middle_block_0_in_layers_2": "mid_block.resnets.0.conv1",
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_transformer_blocks_1_attn1_to_out_0":
        "up_blocks.1.attentions.2.transformer_blocks.1.attn1.to_out.0",
    "output_blocks_8_0_emb_layers_1": "up_blocks.2.resnets.2.time_emb_proj",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "out_2": "conv_out",
}  # fmt: skip


def test_the_original_names_of_sdxl() -> None:
    found = layer_paths("unet", layers_of(RandomSource("random-sdxl"), "unet"))
    assert {name: found.get(name) for name in ORIGINAL} == ORIGINAL


def test_blocks_are_numbered_through_whatever_they_contain() -> None:
    """The demo model's blocks have three, one and one residual blocks on the way down."""
    found = layer_paths("unet", layers_of(RandomSource("demo"), "unet"))
    assert found["input_blocks_4_0_op"] == "down_blocks.0.downsamplers.0.conv"
    assert found["input_blocks_5_0_in_layers_2"] == "down_blocks.1.resnets.0.conv1"
    assert found["output_blocks_3_2_conv"] == "up_blocks.1.upsamplers.0.conv"
    blocks = [f"up_blocks.{block}.resnets.{index}.conv1" for block in (0, 1) for index in (0, 1)]
    plain = layer_paths("unet", [*blocks, "up_blocks.0.upsamplers.0.conv"])
    assert plain["output_blocks_1_1_conv"] == "up_blocks.0.upsamplers.0.conv"  # without attention before it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet_out_2.lora_up.weight", TensorName("unet", "out_2", "up")),
        ("lora_te1_text_model_encoder_layers_3_mlp_fc1.alpha",
         TensorName("text_encoder", "encoder_layers_3_mlp_fc1", "alpha")),
        ("lora_te2_text_projection.lora_down.weight", TensorName("text_encoder_2", "text_projection", "down")),
        ("text_encoder_2.text_model.encoder.layers.3.mlp.fc1.lora_linear_layer.up.weight",
         TensorName("text_encoder_2", "encoder_layers_3_mlp_fc1", "up")),
        ("unet.a.attn1.processor.to_out_lora.down.weight", TensorName("unet", "a_attn1_to_out", "down")),
        ("base_model.model.text_encoder.a.lora_B.default.weight", TensorName("text_encoder", "a", "up")),
        ("mid_block.attentions.0.proj_in.lora.up.weight", TensorName("unet", "mid_block_attentions_0_proj_in", "up")),
        ("unet.conv_in.weight", None),
        ("unet.conv_in.lora_B.bias", None),
        ("alpha", None),
    ],
)  # fmt: skip
def test_a_name_has_a_component_a_layer_and_a_role(name: str, expected: TensorName | None) -> None:
    assert parse_name(name) == expected
