"""Small sets, scorers and generators with known answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
from PIL import Image
from safetensors.torch import save_file

from infid_export.evaluation.evaluation import Evaluation, PictureScore
from infid_export.evaluation.scorers import Scorers
from infid_export.evaluation.sets import EvaluationSet, Prompt, Subject
from infid_export.model.architectures import DEMO

TINY_CLIP = "tiny-clip-of-the-tests"
# The demo's blocks, narrow and at 64 pixels: a step takes some hundredths of a second.
_NARROW = {"sample_size": 16, "block_out_channels": [32, 64, 64], "attention_head_dim": [1, 1, 1]}
SMALL = replace(DEMO, unet={**DEMO.unet, **_NARROW}, vae={**DEMO.vae, "sample_size": 64})


def plain(red: int, green: int = 0, blue: int = 0, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), (red, green, blue))


def dotted(background: int, size: int = 64) -> Image.Image:
    """An image in which the tests' detector finds one face."""
    image = Image.new("RGB", (size, size), (background, background, background))
    image.paste((255, 255, 255), (size // 2, size // 2, size // 2 + 4, size // 2 + 4))
    return image


class ColorScorer:
    """An image's embedding is the color of its first pixel; a text's embedding is the numbers in it."""

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.array([image.getpixel((0, 0)) for image in images], np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(word) for word in text.split()] for text in texts], np.float32)

    def describe(self) -> dict[str, Any]:
        return {"name": "color"}


class ColorFaceScorer:
    """A face's embedding is its color; an image without blue has no face."""

    def embed_faces(self, images: Sequence[Image.Image]) -> list[np.ndarray | None]:
        pixels = [np.array(image.getpixel((0, 0)), np.float32) for image in images]
        return [pixel if pixel[2] else None for pixel in pixels]

    def describe(self) -> dict[str, Any]:
        return {"name": "color faces"}


COLORS = Scorers(ColorScorer(), ColorFaceScorer())


class TableGenerator:
    """Returns images by prompt, and records its arguments."""

    batch = 2

    def __init__(self, pictures: dict[str, Image.Image]) -> None:
        self.pictures = pictures
        self.calls: list[tuple[Any, list[str], list[int], bool]] = []

    def enroll(self, photo: Image.Image) -> Any:
        return photo

    def generate(
        self, person: Any, prompts: Sequence[str], noise_seeds: Sequence[int], stylized: bool
    ) -> list[Image.Image]:
        self.calls.append((person, list(prompts), list(noise_seeds), stylized))
        return [self.pictures[prompt] for prompt in prompts]

    def describe(self) -> dict[str, Any]:
        return {"kind": "table", "settings": {"steps": 1}}


def two_people(**changes: Any) -> EvaluationSet:
    values: dict[str, Any] = {
        "name": "test",
        "people": (Subject("ann", plain(3, 0, 4)), Subject("bob", plain(0, 1, 1))),
        "prompts": (Prompt("1 0 0"), Prompt("0 3 4", stylized=True)),
    }
    return EvaluationSet(**{**values, **changes})


def evaluation(scores: dict[tuple[str, str], float | tuple[float, float, float]], **changes: Any) -> Evaluation:
    """An evaluation with given scores by person and prompt; one number stands for all three scores."""
    pictures = []
    for (person, prompt), value in scores.items():
        clip_t, clip_i, m_facenet = value if isinstance(value, tuple) else (value, value, value)
        pictures.append(PictureScore(person, prompt, "style" in prompt, 0, 0, clip_t, clip_i, m_facenet, True))
    people, prompts = (list(dict.fromkeys(key[i] for key in scores)) for i in (0, 1))
    chosen = {"people": people, "prompts": prompts, "seeds": [0], "fingerprint": "same"}
    values: dict[str, Any] = {"set": chosen, "generator": {"settings": {}}, "scorers": {}, "pictures": tuple(pictures)}
    return Evaluation(**{**values, **changes})


def write_tiny_clip(folder: Path) -> Path:
    """Register a tiny CLIP with open_clip as `TINY_CLIP`, and write random weights for it."""
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path = folder / f"{TINY_CLIP}.json"
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    weights = folder / "clip.safetensors"
    state = open_clip.create_model(TINY_CLIP).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    return weights
