"""Fuzzed configurations of checkpoints in diffusers' format."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz_folders import checkpoint_tokenizer
from fuzz_harness import Attempt
from mutations import damaged, damaged_json, json_text

from infid_export.model.architectures import DEMO, Architecture
from infid_export.model.checkpoints.folder import read_checkpoint
from infid_export.model.checkpoints.loading import explained
from infid_export.model.components import build_component
from infid_export.model.config import IdentityConfig
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER


def configurations(folder: Path) -> Attempt:
    """Open checkpoints with one odd configuration, and build that network without weights."""
    documents: dict[str, Any] = {
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **DEMO.unet},
        "vae/config.json": {"_class_name": "AutoencoderKL", **DEMO.vae},
        "text_encoder/config.json": {
            "model_type": "clip_text_model",
            "architectures": ["CLIPTextModel"],
            **DEMO.text_encoder,
        },
        "text_encoder_2/config.json": {
            "model_type": "clip_text_model",
            "architectures": ["CLIPTextModelWithProjection"],
            **DEMO.text_encoder_2,
        },
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", **SDXL_SCHEDULER},
        "model_index.json": {
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        },
    }
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        vocabulary = checkpoint_tokenizer(folder / name, pad) / "vocab.json"
        count = len(json.loads(vocabulary.read_text()))
        words = {"vocab_size": count, "bos_token_id": count - 2, "eos_token_id": count - 1}
    for name in ("text_encoder", "text_encoder_2"):
        documents[f"{name}/config.json"] |= words
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))

    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):  # weights, which opening does not read
        name = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        (folder / part / f"{name}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    read_checkpoint(folder)  # undamaged, it is a checkpoint

    def attempt(random: Random) -> None:
        name = random.choice(list(documents))
        path, content = folder / name, json.dumps(documents[name]).encode()
        try:
            if random.random() < 0.25:
                path.write_bytes(damaged(random, content))
            else:
                path.write_bytes(json_text(random, damaged_json(random, documents[name])))
            parts = read_checkpoint(folder).parts
            network = name.split("/")[0]
            if network in parts:
                with explained(f"The {network}", fix="Use SDXL base or a fine-tune of it."):
                    build_component(network, Architecture(image_encoder=DEMO.image_encoder, **parts), IdentityConfig())
        finally:
            path.write_bytes(content)

    return attempt
