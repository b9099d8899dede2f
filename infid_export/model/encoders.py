"""The image side of the identity: OpenCLIP features, and the whole identity encoder as one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
    """The last hidden state of an OpenCLIP vision transformer.

    Args:
        visual: `open_clip`'s VisionTransformer (`model.visual`); its pooling and projection are not used.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    @property
    def size(self) -> int:
        """Height and width of the input in pixels."""
        return int(self.visual.image_size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: `[B, 3, size, size]` RGB in [0, 1].

        Returns:
            `[B, 1 + patches, width]`, before the final layer norm; transformers' CLIPVisionModel calls it
            `last_hidden_state`.
        """
        weight = self.visual.conv1.weight
        patches = self.visual.conv1(normalized(pixels).to(weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.visual.class_embedding.to(weight.dtype).expand(patches.shape[0], 1, -1)
        hidden = torch.cat([class_token, patches], dim=1) + self.visual.positional_embedding.to(weight.dtype)
        return self.visual.transformer(self.visual.ln_pre(hidden))


class IdentityEncoder(nn.Module):
    """From a face to an identity: image encoder, mappers and projections, for both guidance conditions.

    Args:
        image_encoder: see `ImageEncoder`.
        identity: mappers and projections.
    """

    def __init__(self, image_encoder: ImageEncoder, identity: IdentityModules) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.identity = identity

    def forward(self, face_crop: Tensor, face_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode one aligned face.

        Args:
            face_crop: `[1, 3, size, size]` fp32 RGB in [0, 1].
            face_embedding: `[1, face_width]` fp32, L2-normalized.

        Returns:
            Identity tokens `[2, T, D]`, keys `[2, T, S]` and values `[2, T, S]`; row 0 is unconditional
            (zero features through the mappers), row 1 the person.
        """
        dtype = self.identity.dtype  # the image encoder may have another dtype
        features = self.image_encoder(face_crop).to(dtype)
        embedding = face_embedding.to(dtype)
        both_features = torch.cat([torch.zeros_like(features), features])
        both_embeddings = torch.cat([torch.zeros_like(embedding), embedding])
        tokens, keys, values = self.identity(both_features, both_embeddings)
        return tokens, keys, values
