"""The exported modules besides steps and identity encoder: text encoders and the VAE's decoder, as SDXL uses them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PromptEncoder(nn.Module):
    """A CLIP text encoder as SDXL uses it: penultimate hidden states, and the pooled projection if it has one."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Encode `[R, 77]` token ids to `[R, 77, D]`, and `[R, D]` for an encoder with a projection."""
        output = self.encoder(input_ids, output_hidden_states=True)
        hidden: Tensor = output.hidden_states[-2]
        return (hidden, output.text_embeds) if hasattr(output, "text_embeds") else hidden


class ImageDecoder(nn.Module):
    """The VAE decoder from latents to an image in [0, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Decode `[B, 4, h, w]` fp32 latents to `[B, 3, H, W]` fp32 RGB."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1)
