"""The graphs of an engine folder: which component each needs, its module, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infid_export.model.architectures import Architecture
from infid_export.model.config import IdentityConfig
from infid_export.model.encoders import IdentityEncoder
from infid_export.model.processors import text_feature_paths
from infid_export.model.step import DenoiseStep, IdentityStep, TextStep

PROMPT_TOKENS = 77
FEATURE_PREFIX = "text_features."


@dataclass(frozen=True)
class Sizes:
    """All that decides the shapes of a folder's graphs.

    Args:
        batch: B, images per call.
        height: pixels; likewise `width`.
        people: token slots for people.
        dtype: type of the networks.
    """

    batch: int
    height: int
    width: int
    people: int
    dtype: torch.dtype


class PromptEncoder(nn.Module):
    """A CLIP text encoder as SDXL uses it: penultimate hidden states, and the pooled projection if it has one."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Encode `[R, 77]` token ids to `[R, 77, D]`, and `[R, D]` for an encoder with a projection."""
        output = self.encoder(input_ids, output_hidden_states=True)
        hidden: Tensor = output.hidden_states[-2]
        return (hidden, output.text_embeds) if hasattr(output, "text_embeds") else hidden


class ImageDecoder(nn.Module):
    """The VAE decoder from latents to an image in [0, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `[B, 4, h, w]` fp32 latents to `[B, 3, H, W]` fp32 RGB."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1)


def graph_module(name: str, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
    """Return the module of a graph.

    Args:
        name: the graph.
        parts: its components by name.
        config: the method variant.
        ops: what stands for the attention operations, see `install_processors`.
    """
    if name in ("text_encoder", "text_encoder_2"):
        return PromptEncoder(parts[name])
    if name == "identity_encoder":
        return IdentityEncoder(parts["image_encoder"], parts["identity"])  # type: ignore[arg-type]
    if name == "vae_decoder":
        return ImageDecoder(parts["vae"])
    step = {"denoise_step": DenoiseStep, "text_step": TextStep, "identity_step": IdentityStep}[name]
    return step(parts["unet"], config, ops)


def graph_inputs(
    name: str, sizes: Sizes, architecture: Architecture, config: IdentityConfig, blocks: Mapping[str, int]
) -> dict[str, Tensor | list[Tensor]]:
    """Return the arguments of a graph's module as meta tensors, in the order of its signature.

    Args:
        name: the graph.
        sizes: see `Sizes`.
        architecture: configurations of the components.
        config: sizes of the identity modules.
        blocks: cross-attention paths and channels of the UNet.
    """
    batch, rows, net = sizes.batch, 2 * sizes.batch, sizes.dtype
    latents = (batch, *architecture.latents(sizes.height, sizes.width))
    if name in ("text_encoder", "text_encoder_2"):
        return {"input_ids": _meta(rows, PROMPT_TOKENS, dtype=torch.int32)}
    if name == "identity_encoder":
        side = architecture.image_encoder["image_size"]
        return {"face_crop": _meta(1, 3, side, side), "face_embedding": _meta(1, config.face_width)}
    if name == "vae_decoder":
        return {"latents": _meta(*latents)}
    pooled = architecture.text_encoder_2["projection_dim"]
    common: dict[str, Tensor | list[Tensor]] = {
        "timestep": _meta(1),
        "ddim_coefficients": _meta(2),
        "guidance": _meta(batch),
        "prompt_embeds": _meta(rows, PROMPT_TOKENS, architecture.unet["cross_attention_dim"], dtype=net),
        "pooled_prompt_embeds": _meta(rows, pooled, dtype=net),
        "time_ids": _meta(rows, 6),
    }
    stacked = (rows, sizes.people * config.tokens, sum(blocks.values()))
    identity: dict[str, Tensor | list[Tensor]] = {
        "identity_keys": _meta(*stacked, dtype=net),
        "identity_values": _meta(*stacked, dtype=net),
        "style_strength": _meta(batch),
        "identity_strength": _meta(batch),
    }
    if name == "text_step":
        return {"text_latents": _meta(*latents), **common}
    if name == "denoise_step":
        return {"text_latents": _meta(*latents), "identity_latents": _meta(*latents), **common, **identity}
    features = [
        _meta(rows, _tokens(path, sizes, architecture), channels, dtype=net) for path, channels in blocks.items()
    ]
    return {"identity_latents": _meta(*latents), **common, **identity, "text_features": features}


def input_names(name: str, blocks: Mapping[str, int]) -> list[str]:
    """Return the flat names of a graph's inputs."""
    latents = {"text_step": ["text_latents"], "identity_step": ["identity_latents"]}
    common = [
        "timestep",
        "ddim_coefficients",
        "guidance",
        "prompt_embeds",
        "pooled_prompt_embeds",
        "time_ids",
    ]
    identity = ["identity_keys", "identity_values", "style_strength", "identity_strength"]
    return {
        "text_encoder": ["input_ids"],
        "text_encoder_2": ["input_ids"],
        "identity_encoder": ["face_crop", "face_embedding"],
        "vae_decoder": ["latents"],
        "denoise_step": ["text_latents", "identity_latents", *common, *identity],
        "text_step": [*latents["text_step"], *common],
        "identity_step": [*latents["identity_step"], *common, *identity, *feature_names(blocks)],
    }[name]


def output_names(name: str, blocks: Mapping[str, int]) -> list[str]:
    """Return the flat names of a graph's outputs."""
    return {
        "text_encoder": ["hidden_states"],
        "text_encoder_2": ["hidden_states", "pooled"],
        "identity_encoder": ["identity_tokens", "identity_keys", "identity_values"],
        "vae_decoder": ["image"],
        "denoise_step": ["next_text_latents", "next_identity_latents"],
        "text_step": ["next_text_latents", *feature_names(blocks)],
        "identity_step": ["next_identity_latents"],
    }[name]


def feature_names(blocks: Mapping[str, int]) -> list[str]:
    """Return the names under which text features travel from `text_step` to `identity_step`."""
    return [FEATURE_PREFIX + path for path in text_feature_paths(blocks)]


def _tokens(path: str, sizes: Sizes, architecture: Architecture) -> int:
    """Image tokens of a transformer block, from the level of the UNet it lies in."""
    levels = len(architecture.unet["block_out_channels"])
    part, index, *_ = path.split(".")
    level = {"down_blocks": int(index) if index.isdigit() else 0, "mid_block": levels - 1}.get(part)
    if level is None:
        level = levels - 1 - int(index)
    _, height, width = architecture.latents(sizes.height, sizes.width)
    return (height >> level) * (width >> level)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
