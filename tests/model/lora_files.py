"""Random LoRA files in the notations of kohya's trainer, diffusers and PEFT, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infid_export.model.architectures import _unet
from infid_export.model.changes.lora_names import layer_paths
from infid_export.model.sources import ModelSource, RandomSource

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
# Layers of every kind of block.
LAYERS = {
    "unet": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
        "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_out.0",
        "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
        "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2",
        "up_blocks.1.attentions.0.proj_in",
    ),
    "text_encoder": (
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.0.self_attn.out_proj",
        "encoder.layers.1.mlp.fc1",
    ),
    "text_encoder_2": ("encoder.layers.1.self_attn.v_proj", "encoder.layers.1.self_attn.out_proj"),
}
CONVOLUTIONS = (
    "conv_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.1.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut",
    "mid_block.resnets.1.conv2",
    "up_blocks.0.upsamplers.0.conv",
)


def sdxl_like() -> RandomSource:
    """Return random weights of a small UNet whose blocks are arranged as in SDXL, and the demo's other networks."""
    source = RandomSource("demo")
    unet = {**_unet([16, 32, 64], [1, 1, 2], [1, 2, 2], 2, 128, 64, 16), "norm_num_groups": 8}
    source.architecture = replace(source.architecture, unet=unet)
    return source


def layers_of(source: ModelSource, component: str) -> list[str]:
    """Return the paths of all layers of a component that a LoRA can change."""
    modules = source.empty(component).named_modules()
    return [path for path, layer in modules if isinstance(layer, nn.Linear | nn.Conv2d)]


def matrices(
    source: ModelSource, component: str, layers: Collection[str], rank: int = 4
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return random matrices for layers, down and up, in the shapes that trainers store."""
    weights = {name.removeprefix("text_model."): value for name, value in source.empty(component).named_parameters()}
    shapes = {layer: weights[f"{layer}.weight"].shape for layer in layers}
    return {
        layer: (torch.randn(rank, *shape[1:]) / 8, torch.randn(shape[0], rank, *[1] * (len(shape) - 2)) / 8)
        for layer, shape in shapes.items()
    }


def original_names(source: ModelSource) -> dict[str, str]:
    """Return the name of each layer of the UNet in the original UNet, with underscores."""
    found = {}
    for name, path in layer_paths("unet", layers_of(source, "unet")).items():
        if not name.endswith("to_out") and name != path.replace(".", "_"):
            found[path] = name
    return found


def kohya(component: str, name: str, pair: tuple[Tensor, Tensor], alpha: float | None = 2.0) -> dict[str, Tensor]:
    """Return a layer's tensors in kohya's notation."""
    start = f"{KOHYA[component]}{name.replace('.', '_')}"
    stated = {} if alpha is None else {f"{start}.alpha": torch.tensor(alpha)}
    return {f"{start}.lora_down.weight": pair[0], f"{start}.lora_up.weight": pair[1], **stated}


def peft(component: str, name: str, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors in the notation of PEFT, which diffusers uses too."""
    start = f"{component}.{'' if component == 'unet' else 'text_model.'}{name}"
    return {f"{start}.lora_A.weight": pair[0], f"{start}.lora_B.weight": pair[1]}


def older(component: str, name: str, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors as older versions of diffusers wrote them."""
    start = f"{component}.{'' if component == 'unet' else 'text_model.'}{name}"
    if component == "unet" and "attn" in name:
        head, _, projection = start.removesuffix(".0").rpartition(".")
        start = f"{head}.processor.{projection}_lora"
    elif component == "unet":
        start += ".lora"
    elif "self_attn" in name:
        for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
            start = start.replace(new, f"{old}_lora")
    else:
        start += ".lora_linear_layer"
    return {f"{start}.down.weight": pair[0], f"{start}.up.weight": pair[1]}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=dict(metadata or {}))
    return path
