"""Builds a component of a model from its configuration, without weights."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from torch import nn

from infid_export.model.architectures import Architecture
from infid_export.model.config import IdentityConfig
from infid_export.model.encoders import ImageEncoder
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks


def build_component(name: str, architecture: Architecture, config: IdentityConfig) -> nn.Module:
    """Build a component without weights.

    Args:
        name: one of `sources.COMPONENTS`.
        architecture: all configurations.
        config: sizes of the identity modules.

    Returns:
        The module in evaluation mode, parameters on the meta device, buffers on the CPU.
    """
    with init_empty_weights(include_buffers=False):
        module = construct(name, architecture, config)
    return module.eval().requires_grad_(False)


def construct(name: str, architecture: Architecture, config: IdentityConfig) -> nn.Module:
    """Build a component with its library's initial weights; arguments as in `build_component`."""
    settings = architecture.component(name)
    if name == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(settings)
    if name == "vae":
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_config(settings)
    if name in ("text_encoder", "text_encoder_2"):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kind = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
        return kind(CLIPTextConfig(**settings))
    if name == "image_encoder":
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        vision = {key: value for key, value in settings.items() if key != "embed_dim"}
        return ImageEncoder(_build_vision_tower(settings["embed_dim"], CLIPVisionCfg(**vision)), config.clip_layer)
    with torch.device("meta"):
        unet = construct("unet", architecture, config)
    return IdentityModules(config, identity_blocks(unet))


def cast_module(module: nn.Module, *to: torch.dtype | torch.device) -> nn.Module:
    """Cast a module to a dtype, move it to a device, or both; return it.

    This avoids diffusers' own `to`, which warns about modules that should stay fp32: SDXL's networks have none.
    """
    for each in to:
        nn.Module.to(module, each)
    return module
