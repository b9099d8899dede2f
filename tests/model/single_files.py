"""Small random checkpoints in one file of SDXL's original layout."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from infid_export.model.architectures import DEMO
from infid_export.model.checkpoints.original_layout import PREFIXES, original_places
from infid_export.model.sources import RandomSource

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
# The demo model's sizes, but with what the layout does not store as in SDXL, and one number of layers as diffusers
# expects it. The identity weights and the image encoder of the demo model fit.
SMALL = replace(
    DEMO,
    unet={**{k: v for k, v in DEMO.unet.items() if k != "norm_num_groups"}, "layers_per_block": 1, "sample_size": 128},
    vae={
        **{k: v for k, v in DEMO.vae.items() if k != "norm_num_groups"},
        "block_out_channels": [32, 32, 64],
        "sample_size": 1024,
    },
    # diffusers tells the text encoders apart by their widths
    text_encoder={**DEMO.text_encoder, "hidden_size": 32, "intermediate_size": 128, "projection_dim": 32},
    text_encoder_2={**DEMO.text_encoder_2, "hidden_size": 96, "intermediate_size": 384},
)


def small_source(seed: int = 0) -> RandomSource:
    """Return random weights of the small architecture."""
    source = RandomSource("demo", seed)
    source.architecture = SMALL
    return source


def original_tensors(source: RandomSource, *networks: str, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return the tensors of networks, by their names and in their shapes of the original layout."""
    found: dict[str, Tensor] = {}
    for network in networks or NETWORKS:
        places = original_places(network, source.architecture.component(network))
        thirds: dict[str, dict[int, Tensor]] = {}
        for name, value in source.weights(network, torch.float32):
            seed = zlib.crc32(name.encode())  # norms and biases are constant without noise
            noisy = value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
            place = places[name.removeprefix("text_model.")]
            key, tensor = PREFIXES[network] + place.key, noisy.to(dtype)
            if place.third is not None:
                thirds.setdefault(key, {})[place.third] = tensor
                continue
            if network == "vae" and ".attentions." in name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            found[key] = tensor.T.contiguous() if place.transposed else tensor.contiguous()
        found |= {key: torch.cat([parts[index] for index in range(3)]) for key, parts in thirds.items()}
    return found


def write_file(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    """Write a safetensors file."""
    save_file(dict(tensors), path, metadata=metadata)
    return path


def write_configurations(folder: Path) -> Path:
    """Write the small architecture's configurations, as a folder that diffusers' loaders read."""
    kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    for network in NETWORKS:
        (folder / network).mkdir(parents=True)
        named = {"_class_name": kinds[network]} if network in kinds else {"model_type": "clip_text_model"}
        (folder / network / "config.json").write_text(json.dumps({**SMALL.component(network), **named}))
    return folder
