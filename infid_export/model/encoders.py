"""The image side of the identity: OpenCLIP features, and the whole identity encoder as one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infid_export.model.config import ClipLayer
from infid_export.model.identity import IdentityModules

# OpenCLIP's image statistics (RGB), as in open_clip.constants.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalized(pixels: Tensor) -> Tensor:
    """Return `[B, 3, H, W]` RGB in [0, 1] minus OpenCLIP's mean, divided by its deviation."""
    # without a tensor of its own, which a package without weights could not hold
    channels = zip(pixels.split(1, 1), MEAN, STD, strict=True)
    return torch.cat([(channel - mean) / deviation for channel, mean, deviation in channels], 1)


class ImageEncoder(nn.Module):
    """The features of an OpenCLIP vision transformer.

    Args:
        visual: `open_clip`'s VisionTransformer (`model.visual`).
        layer: what is returned: the `last` hidden state, the `penultimate` one, or `pooled`, the projected class token.
    """

    def __init__(self, visual: Any, layer: ClipLayer = "last") -> None:
        super().__init__()
        self.visual = visual
        self.layer = layer

    @property
    def size(self) -> int:
        """Height and width of the input in pixels."""
        return int(self.visual.image_size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: `[B, 3, size, size]` RGB in [0, 1].

        Returns:
            `[B, 1 + patches, width]`, before the final layer norm (transformers' CLIPVisionModel calls them
            `last_hidden_state` and `hidden_states[-2]`), or `[B, 1, embed_dim]` (`image_embeds`).
        """
        return self.encode(normalized(pixels))

    def encode(self, images: Tensor) -> Tensor:
        """Encode `[B, 3, size, size]` images that are normalized already, see `normalized`."""
        visual, weight = self.visual, self.visual.conv1.weight
        patches = visual.conv1(images.to(weight.dtype)).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(weight.dtype).expand(patches.shape[0], 1, -1)
        hidden = visual.ln_pre(torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(weight.dtype))
        if self.layer == "penultimate":
            for block in visual.transformer.resblocks[:-1]:
                hidden = block(hidden)
            return hidden
        hidden = visual.transformer(hidden)
        return visual.ln_post(hidden[:, :1]) @ visual.proj if self.layer == "pooled" else hidden


class IdentityEncoder(nn.Module):
    """From a face or an image to an identity: image encoder, mapper and projections, for both guidance conditions.

    Args:
        image_encoder: see `ImageEncoder`; None if the mapper reads no image.
        identity: mapper and projections.
    """

    def __init__(self, image_encoder: ImageEncoder | None, identity: IdentityModules) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.identity = identity

    def forward(
        self, face_crop: Tensor | None = None, face_embedding: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode one person. Both arguments are what the mapper reads, and None where it reads nothing.

        Args:
            face_crop: `[1, 3, size, size]` fp32 RGB in [0, 1]: what the image encoder sees, see `IdentityConfig.crop`.
            face_embedding: `[1, face_width]` fp32.

        Returns:
            Identity tokens `[2, T, D]`, keys `[2, T, S]` and values `[2, T, S]`; row 0 is unconditional (see
            `IdentityConfig.uncond_identity`), row 1 the person.
        """
        dtype = self.identity.dtype  # the image encoder may have another dtype
        features = None if face_crop is None else self._features(face_crop).to(dtype)
        embeddings = None if face_embedding is None else _after_zeros(face_embedding.to(dtype))
        tokens, keys, values = self.identity(features, embeddings)
        return tokens, keys, values

    def _features(self, crop: Tensor) -> Tensor:
        assert self.image_encoder is not None
        if self.identity.config.uncond_identity == "zero_image":
            return self.image_encoder.encode(_after_zeros(normalized(crop)))
        return _after_zeros(self.image_encoder(crop))


def _after_zeros(row: Tensor) -> Tensor:
    """Return a row of zeros, then the row."""
    return torch.cat([torch.zeros_like(row), row])
