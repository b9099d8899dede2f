"""The mappers of other methods: from features to identity tokens, with the parameter names of their published weights.

| mapper | method | reads |
|---|---|---|
| `LinearMapper` | IP-Adapter (Ye et al., arXiv 2308.06721) | the pooled image |
| `Resampler` | IP-Adapter Plus; InstantID (Wang et al., arXiv 2401.07519) | the image's tokens; a face embedding |
| `MlpMapper` | IP-Adapter FaceID | a face embedding |
| `PerceiverMapper` | IP-Adapter FaceID-Plus, -PlusV2 | a face embedding, and the image's tokens |

All take `(clip_features, face_embedding)`, of which they read what `IdentityConfig` says: `[B, clip_tokens,
clip_width]` and `[B, face_width]`. All return `[B, T, D]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infid_export.model.config import IdentityConfig


class LinearMapper(nn.Module):
    """Map a pooled image to T tokens: LayerNorm(W x + b)."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__()
        self.tokens, width = config.mapper_queries, config.cross_attention_dim
        self.proj = nn.Linear(config.clip_width, self.tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, clip_features: Tensor, face_embedding: Tensor | None = None) -> Tensor:
        """Return the tokens of `[B, 1, clip_width]`."""
        return self.norm(self.proj(clip_features[:, 0]).unflatten(-1, (self.tokens, -1)))


class MlpMapper(nn.Module):
    """Map a face embedding to T tokens."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__()
        self.tokens, width, face = config.face_tokens, config.cross_attention_dim, config.face_width
        self.proj = nn.Sequential(nn.Linear(face, 2 * face), nn.GELU(), nn.Linear(2 * face, self.tokens * width))
        self.norm = nn.LayerNorm(width)

    def forward(self, clip_features: Tensor | None, face_embedding: Tensor) -> Tensor:
        """Return the tokens of `[B, face_width]`."""
        return self.norm(self.proj(face_embedding).unflatten(-1, (self.tokens, -1)))


class PerceiverAttention(nn.Module):
    """Attention from latents to an image's tokens and the latents themselves, as in Flamingo (arXiv 2204.14198)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Return `[B, T, width]` for `[B, N, width]` tokens and `[B, T, width]` latents."""
        latents = self.norm2(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.to_q(latents), keys, values))
        scale = q.shape[-1] ** -0.25  # on both factors, and the softmax in fp32: raw embeddings are large in fp16
        weights = ((q * scale) @ (k * scale).transpose(-2, -1)).float().softmax(-1).to(q.dtype)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    """Layers of `PerceiverAttention` and a feed-forward network, from `[B, N, features]` to `[B, T, D]`."""

    def __init__(self, features: int, config: IdentityConfig) -> None:
        super().__init__()
        width = config.mapper_hidden
        self.proj_in = nn.Linear(features, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, config.mapper_heads), _feed_forward(width)])
            for _ in range(config.mapper_layers)
        )
        self.proj_out = nn.Linear(width, config.cross_attention_dim)
        self.norm_out = nn.LayerNorm(config.cross_attention_dim)

    def read(self, latents: Tensor, x: Tensor) -> Tensor:
        """Return the tokens that `[B, T, mapper_hidden]` latents read from `[B, N, features]`."""
        x = self.proj_in(x)
        layers: Any = self.layers
        for attention, feed_forward in layers:
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


class Resampler(Perceiver):
    """Map an image's tokens, or a face embedding as the only token, to as many tokens as there are trained queries."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__(config.clip_width if config.reads_image else config.face_width, config)
        width = config.mapper_hidden
        self.latents = nn.Parameter(torch.randn(1, config.mapper_queries, width) / width**0.5)

    def forward(self, clip_features: Tensor | None, face_embedding: Tensor | None) -> Tensor:
        """Return the tokens of `[B, clip_tokens, clip_width]` or of `[B, face_width]`."""
        x = clip_features if face_embedding is None else face_embedding[:, None]
        assert x is not None
        return self.read(self.latents.expand(x.shape[0], -1, -1), x)


class PerceiverMapper(MlpMapper):
    """Map a face embedding to T tokens, which then read the image; with `shortcut`, face + scale · read."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__(config)
        self.perceiver_resampler = Perceiver(config.clip_width, config)
        self.scale = config.perceiver_scale if config.shortcut else None

    def forward(self, clip_features: Tensor | None, face_embedding: Tensor) -> Tensor:
        """Return the tokens of `[B, clip_tokens, clip_width]` and `[B, face_width]`."""
        assert clip_features is not None
        face = super().forward(None, face_embedding)
        read = self.perceiver_resampler.read(face, clip_features)
        return read if self.scale is None else face + self.scale * read


MAPPERS: dict[str, type[LinearMapper] | type[Resampler] | type[MlpMapper]] = {
    "linear": LinearMapper,
    "resampler": Resampler,
    "mlp": MlpMapper,
    "mlp_perceiver": PerceiverMapper,
}


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )
