"""Fuzzed configurations of checkpoints in diffusers' format."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz_harness import Attempt
from mutations import damaged, damaged_json, json_text

from infid_export.model.architectures import DEMO
from infid_export.model.config import IdentityConfig
from infid_export.model.sources import CheckpointSource
from infid_export.scheduler import SDXL_SCHEDULER


def configurations(folder: Path) -> Attempt:
    """Open checkpoints of which one configuration is odd."""
    documents: dict[str, Any] = {
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **DEMO.unet},
        "vae/config.json": {"_class_name": "AutoencoderKL", **DEMO.vae},
        "text_encoder/config.json": {"architectures": ["CLIPTextModel"], **DEMO.text_encoder},
        "text_encoder_2/config.json": {"architectures": ["CLIPTextModelWithProjection"], **DEMO.text_encoder_2},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", **SDXL_SCHEDULER},
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
    }
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))

    def attempt(random: Random) -> None:
        name = random.choice(list(documents))
        path, content = folder / name, json.dumps(documents[name]).encode()
        try:
            if random.random() < 0.25:
                path.write_bytes(damaged(random, content))
            else:
                path.write_bytes(json_text(random, damaged_json(random, documents[name])))
            CheckpointSource(folder, folder / "identity.safetensors", "image_encoder.pt", IdentityConfig())
        finally:
            path.write_bytes(content)

    return attempt
