"""Identity files with small random weights of IP-Adapter and its relatives.

Sizes are those of the demo model: the UNet's cross-attention has width 128, the image encoder 50 tokens of width 128
and a pooled image of 64. Heads have 64 channels and a resampler four layers, as diffusers expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from adapter_layouts import Sizes, Tree, adapter
from safetensors.torch import save_file

from infid_export.model.config import CONFIG_KEY, IdentityConfig

D, FACE, WIDTH, POOLED, CLIP_TOKENS = 128, 512, 128, 64, 50
_BASE = IdentityConfig(
    cross_attention_dim=D, clip_tokens=CLIP_TOKENS, clip_width=WIDTH, face_width=FACE,
    self_attention="plain", adain="off", cross_adain="off",
)  # fmt: skip
_IMAGE = replace(_BASE, mapper="linear", clip_layer="pooled", clip_tokens=1, clip_width=POOLED, face_width=0,
                 face_tokens=0, mapper_queries=4, crop="whole", family="ip-adapter")  # fmt: skip
_RESAMPLED = {"mapper": "resampler", "mapper_hidden": 128, "mapper_layers": 4, "mapper_heads": 2, "mapper_queries": 6}
_NO_IMAGE = {"clip_layer": "none", "clip_tokens": 0, "clip_width": 0}
_PERCEIVER = {"mapper": "mlp_perceiver", "clip_layer": "penultimate", "mapper_hidden": D, "mapper_layers": 4,
              "mapper_heads": 2, "uncond_identity": "zero_image", "crop": "aligned"}  # fmt: skip
CONFIGS: Mapping[str, IdentityConfig] = {
    "ip-adapter": _IMAGE,
    "ip-adapter-plus": replace(_BASE, **_RESAMPLED, clip_layer="penultimate", face_width=0, face_tokens=0,
                               uncond_identity="zero_image", crop="whole", family="ip-adapter-plus"),
    "faceid": replace(_BASE, mapper="mlp", **_NO_IMAGE, family="faceid"),
    "faceid-plus": replace(_BASE, **_PERCEIVER, family="faceid-plus"),
    "faceid-plusv2": replace(_BASE, **_PERCEIVER, shortcut=True, perceiver_scale=0.8, family="faceid-plusv2"),
    "instantid": replace(_BASE, **_RESAMPLED, **_NO_IMAGE, face_tokens=6, face_embedding="raw", family="instantid"),
}  # fmt: skip


def published(family: str, blocks: Mapping[str, int]) -> Tree:
    """Return `image_proj` and `ip_adapter` as in a published file, without its LoRA.

    Args:
        family: a key of `CONFIGS`.
        blocks: of the UNet, see `identity_blocks`.
    """
    sizes = Sizes(tuple(blocks.values()), D, WIDTH, POOLED, hidden=128, queries=6)
    tree = adapter(family, sizes)
    images = {name: value for name, value in tree["ip_adapter"].items() if name.endswith("_ip.weight")}
    return {**tree, "ip_adapter": images}


def write_identity(path: Path, family: str, blocks: Mapping[str, int], **choices: object) -> Path:
    """Write the weights of `published` as an identity file; `choices` replace fields of its configuration."""
    weights = published(family, blocks)
    tensors = {f"mapper.{name}": value for name, value in weights["image_proj"].items()}
    for index, block in enumerate(blocks):
        for ours, theirs in (("to_k_id", "to_k_ip"), ("to_v_id", "to_v_ip")):
            tensors[f"{block}.{ours}.weight"] = weights["ip_adapter"][f"{2 * index + 1}.{theirs}.weight"]
    config = replace(CONFIGS[family], **choices)  # type: ignore[arg-type]
    save_file(tensors, path, metadata={CONFIG_KEY: json.dumps(config.to_dict())})
    return path
