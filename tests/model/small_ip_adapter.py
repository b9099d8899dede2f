"""A small IP-Adapter with random weights, in its own layout: in diffusers, and as keys and values for our step."""

from __future__ import annotations

from typing import Any

import torch
from adapter_layouts import Sizes, Tree, adapter
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from infid_export.model.processors import identity_blocks
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

TOKENS, WIDTH = 4, 24  # of IP-Adapter, and of the image features


def adapter_weights(unet: Any) -> Tree:
    """Return random weights for a UNet, in IP-Adapter's layout."""
    blocks = tuple(identity_blocks(unet).values())
    weights = adapter("ip-adapter", Sizes(blocks, unet.config.cross_attention_dim, pooled=WIDTH), seed=3)
    weights["image_proj"]["norm.weight"] += 1  # as in trained ones, so that the person counts
    return weights


def image_features(guidance: bool = True) -> Tensor:
    """Return `[R, 1, WIDTH]`: of nobody, which IP-Adapter takes for unconditional rows, and of a person."""
    person = torch.randn((1, 1, WIDTH), generator=torch.Generator().manual_seed(4))
    return torch.cat([torch.zeros_like(person), person]) if guidance else person


def keys_and_values(weights: Tree) -> tuple[Tensor, Tensor]:
    """Return `[2, 4, S]` of all blocks: IP-Adapter's arithmetic, written out."""
    given, adapter = weights["image_proj"], weights["ip_adapter"]
    tokens = linear(image_features()[:, 0], given["proj.weight"], given["proj.bias"]).unflatten(1, (TOKENS, -1))
    tokens = layer_norm(tokens, given["norm.weight"].shape, given["norm.weight"], given["norm.bias"])
    keys, values = (
        linear(tokens, torch.cat([each for name, each in adapter.items() if f"to_{kind}_ip" in name]))
        for kind in ("k", "v")
    )
    return keys, values


def with_adapter(pipe: Any, unet: Any, weights: Tree, strength: float) -> StableDiffusionXLPipeline:
    """Return diffusers' own pipeline with the parts of another one, and with the adapter loaded in its UNet."""
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    parts = {name: getattr(pipe, name) for name in names}
    adapted = StableDiffusionXLPipeline(
        **parts, unet=unet, scheduler=DDIMScheduler(**SDXL_SCHEDULER), add_watermarker=False
    )
    adapted.unet._load_ip_adapter_weights([weights])
    for processor in adapted.unet.attn_processors.values():  # set_ip_adapter_scale knows only SDXL's own blocks
        if hasattr(processor, "scale"):
            processor.scale = [strength]
    adapted.set_progress_bar_config(disable=True)
    return adapted


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
