"""The frozen networks whose outputs training reads: VAE, image encoder, and text encoders if text is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.model.sources import ModelSource
from infid_training.shards import PreparedPhoto

Array = np.ndarray[Any, Any]

# The dtype in which large outputs are cached. fp16 rounds to 5e-4 of a value; latents, as the targets, stay fp32.
_KEPT = torch.float16


class PhotoEncoders:
    """Encodes prepared photos in fp32.

    Args:
        source: the model.
        device: device to compute on.
    """

    def __init__(self, source: ModelSource, device: torch.device) -> None:
        self._device = device
        self._vae: Any = source.load("vae", torch.float32).to(device)
        self._image_encoder: Any = source.load("image_encoder", torch.float32).to(device)
        self._texts: list[tuple[Tokenizer, Any]] = []
        if source.config.trained_with_text:
            self._texts = [
                (Tokenizer.from_str(text), source.load(name, torch.float32).to(device))
                for text, name in zip(source.tokenizers(), ("text_encoder", "text_encoder_2"), strict=True)
            ]

    @torch.no_grad()
    def encode(self, photos: Sequence[PreparedPhoto]) -> dict[str, Tensor]:
        """Return the tensors of `CachedPhotos` for some photos, on the CPU.

        The latents are the means of the VAE's distribution (**choice**: its deviation is far below the noise that
        training adds).

        Raises:
            InputError: a network returns values that are not finite.
        """
        pixels = self._pixels([photo.target for photo in photos])
        latents = self._vae.encode(2 * pixels - 1).latent_dist.mean * self._vae.config.scaling_factor
        found = {
            "latents": latents.float(),
            "clip_features": self._image_encoder(self._pixels([photo.face for photo in photos])).to(_KEPT),
            "face_embeddings": torch.from_numpy(np.stack([photo.embedding for photo in photos])),
            "time_ids": torch.tensor([photo.time_ids for photo in photos], dtype=torch.float32),
        }
        if self._texts:
            prompts, pooled = self._encode_texts([photo.caption or "" for photo in photos])
            found |= {"prompt_embeds": prompts.to(_KEPT), "pooled_prompt_embeds": pooled.to(_KEPT)}
        for name, tensor in found.items():
            bad = [photo.name for photo, row in zip(photos, tensor, strict=True) if not bool(row.isfinite().all())]
            if bad:
                raise InputError(
                    f"The {name} of {', '.join(bad)} are not finite.",
                    fix="Check the model's weights, or drop the photo.",
                )
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    def _pixels(self, pictures: Sequence[Array]) -> Tensor:
        """Return `[B, 3, H, W]` fp32 in [0, 1]."""
        return torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2).float() / 255

    def _encode_texts(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return prompt embeddings `[B, 77, D]` and pooled embeddings `[B, P]`, as SDXL takes them."""
        states = []
        for tokenizer, encoder in self._texts:
            ids = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(captions)], device=self._device)
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
        return torch.cat(states, dim=-1), output.text_embeds
