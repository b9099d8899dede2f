from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import RandomSource
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

ENCODER = "infid-test-vit"


@pytest.fixture(scope="session")
def parts(source: RandomSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's weights as a diffusers folder, an identity file and an OpenCLIP checkpoint."""
    root = tmp_path_factory.mktemp("checkpoint")
    vocabulary = json.loads(source.tokenizers()[0])["model"]
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        folder = root / "words" / name
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in vocabulary["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**special, "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
        )
    pipe = StableDiffusionXLPipeline(
        **{name: source.load(name, torch.float32) for name in ("vae", "text_encoder", "text_encoder_2", "unet")},
        **{name: CLIPTokenizer.from_pretrained(root / "words" / name) for name in ("tokenizer", "tokenizer_2")},
        scheduler=DDIMScheduler(**SDXL_SCHEDULER),
        add_watermarker=False,
    )
    pipe.save_pretrained(root / "base", safe_serialization=True)
    vision = {key: value for key, value in source.architecture.image_encoder.items() if key != "embed_dim"}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (root / f"{ENCODER}.json").write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(root / f"{ENCODER}.json")
    clip = open_clip.create_model(ENCODER)
    clip.visual.load_state_dict(source.load("image_encoder", torch.float32).visual.state_dict())
    torch.save(clip.state_dict(), root / "open_clip.pt")
    identity = source.load("identity", torch.float32)
    modules = IdentityModules(replace(source.config, image_encoder=ENCODER), identity_blocks(source.empty("unet")))
    modules.load_state_dict(identity.state_dict())
    modules.save(root / "identity.safetensors")
    return {"base": root / "base", "identity": root / "identity.safetensors", "encoder": root / "open_clip.pt"}
