"""CLIP encoders for CLIP-T and CLIP-I: the user's OpenCLIP model, or the demo model's own two towers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.model.encoders import ImageEncoder, normalized
from infid_export.model.sources import ModelSource

Array = np.ndarray[Any, Any]
_BATCH = 16  # images per batch; ViT-H/14 then takes 1 GB besides its weights
# OpenCLIP's image statistics (RGB), as in open_clip.constants.


class OpenClipScorer:
    """An OpenCLIP model with its own preprocessing and tokenizer; an `ImageTextScorer`.

    Args:
        name: open_clip's name of the architecture, such as `ViT-H-14`.
        checkpoint: file with its weights.

    Raises:
        InputError: open_clip has no such architecture, or the file is missing or contains another model.
    """

    def __init__(self, name: str, checkpoint: Path) -> None:
        import open_clip

        if open_clip.get_model_config(name) is None:
            raise InputError(
                f"open_clip has no model named {name}.", fix="See open_clip.list_models(); for example ViT-H-14."
            )
        if not checkpoint.is_file():
            raise InputError(
                f"There is no CLIP checkpoint at {checkpoint}.", fix="Give an architecture and the path of its weights."
            )
        try:
            model, _, self._preprocess = open_clip.create_model_and_transforms(name, pretrained=str(checkpoint))
        except Exception as error:  # pickle's, torch's and safetensors' exceptions have no common base
            raise InputError(
                f"{checkpoint} does not contain the weights of {name} ({str(error).splitlines()[0]}).",
                fix="Give the architecture that the checkpoint belongs to.",
            ) from error
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = open_clip.get_tokenizer(name)
        self._described = {"name": name, "weights": sha256_file(checkpoint)}

    def describe(self) -> dict[str, Any]:
        """Return the architecture and the hash of the weights."""
        return dict(self._described)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Array:
        """Return `[n, D]` embeddings of RGB images."""
        batches = [
            self._model.encode_image(torch.stack([self._preprocess(image) for image in images[start : start + _BATCH]]))
            for start in range(0, len(images), _BATCH)
        ]
        return _as_array(torch.cat(batches))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Return `[n, D]` embeddings of texts."""
        return _as_array(self._model.encode_text(self._tokenizer(list(texts))))


class TowerScorer:
    """A model's image encoder and second text encoder, trained together like the demo's; an `ImageTextScorer`.

    Args:
        source: the model.
    """

    def __init__(self, source: ModelSource) -> None:
        from tokenizers import Tokenizer

        encoder = source.load("image_encoder", torch.float32)
        assert isinstance(encoder, ImageEncoder)
        self._visual: Any = encoder.visual
        self._size = encoder.size
        self._text: Any = source.load("text_encoder_2", torch.float32)
        self._tokenizer = Tokenizer.from_str(source.tokenizers()[1])
        weights = source.fingerprint("image_encoder") + source.fingerprint("text_encoder_2")
        self._described = {"name": source.name, "weights": hashlib.sha256(weights.encode()).hexdigest()}

    def describe(self) -> dict[str, Any]:
        """Return the hash of the weights."""
        return dict(self._described)

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Array:
        """Return `[n, D]` embeddings of RGB images, cropped to a square and scaled to the tower's size."""
        batches = []
        for start in range(0, len(images), _BATCH):
            pixels = np.stack([self._pixels(image) for image in images[start : start + _BATCH]])
            batches.append(self._visual(normalized(torch.from_numpy(pixels))))
        return _as_array(torch.cat(batches))

    def _pixels(self, image: Image.Image) -> Array:
        """Return `[3, size, size]` in [0, 1]."""
        # bilinear, as in the towers' training; OpenCLIP's own models use bicubic
        square = ImageOps.fit(image.convert("RGB"), (self._size, self._size), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(square, np.float32).transpose(2, 0, 1) / 255)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Return `[n, D]` embeddings of texts, truncated to 77 tokens."""
        ids = torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))])
        return _as_array(self._text(input_ids=ids).text_embeds)


def _as_array(embeddings: torch.Tensor) -> Array:
    return embeddings.float().numpy()
