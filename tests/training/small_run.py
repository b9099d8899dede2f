"""A UNet, identity modules and photos so small that a step takes milliseconds; run as a script, it trains them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from infid_export.model.architectures import DEMO
from infid_export.model.config import IdentityConfig
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_training.loop import TrainReport, train
from infid_training.photo_folders import CachedPhotos
from infid_training.run_options import TrainOptions

CONFIG = IdentityConfig(clip_tokens=5, clip_width=16, face_width=8, face_tokens=2, cross_attention_dim=32)
UNET = DEMO.unet | {
    "sample_size": 8,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 1],
    "attention_head_dim": [1, 1, 2],
    "cross_attention_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 256 + 64,
}
OPTIONS = TrainOptions(steps=6, batch_size=2, checkpoint_every=2, log_every=1, validate_every=3, validation_pairs=3)


def small_unet(**changes: Any) -> Any:
    """Return a UNet whose weights keep activations near 1, so that identity has an effect worth learning."""
    unet = UNet2DConditionModel.from_config(UNET | changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, deviation, generator=generator)
    return unet.requires_grad_(False).eval()


def small_identity(unet: Any, **choices: Any) -> IdentityModules:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return IdentityModules(replace(CONFIG, **choices), identity_blocks(unet))


def small_photos(people: int = 3, each: int = 3, seed: int = 0, with_text: bool = False) -> CachedPhotos:
    generator = torch.Generator().manual_seed(seed)
    count = people * each

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    return CachedPhotos(
        latents=draw(4, 8, 8),
        clip_features=draw(CONFIG.clip_tokens, CONFIG.clip_width),
        face_embeddings=torch.nn.functional.normalize(draw(CONFIG.face_width)),
        people=torch.arange(count) // each,
        time_ids=torch.full((count, 6), 64.0),
        names=[f"person-{index // each}/{index % each}.png" for index in range(count)],
        prompt_embeds=draw(77, CONFIG.cross_attention_dim) if with_text else None,
        pooled_prompt_embeds=draw(64) if with_text else None,
    )


def small_run(folder: Path, photos: CachedPhotos | None = None, **changes: Any) -> TrainReport:
    unet = small_unet()
    options = replace(OPTIONS, **changes)
    return train(unet, small_identity(unet), photos or small_photos(), options, folder, validation=small_photos(seed=1))


def losses(folder: Path) -> dict[int, float]:
    """Return every step's loss from the log."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests do
    small_run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
