"""The loss of identity-enhanced training (Infinite-ID, arXiv 2403.11781, section 3.2).

There are only identity rows, the text cross-attention is off (not an empty prompt), self-attention is plain, and
cross-attention is the image attention alone: L = mean ‖ε − ε_θ(z_t, t, c_id)‖². The ablation "trained with text on"
adds the text cross-attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from infid_export.model.identity import IdentityModules
from infid_export.model.processors import Streams


def identity_loss(
    unet: Any,
    identity: IdentityModules,
    noisy_latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    clip_features: Tensor,
    face_embedding: Tensor,
    time_ids: Tensor,
    prompt_embeds: Tensor | None = None,
    pooled_prompt_embeds: Tensor | None = None,
) -> Tensor:
    """Return the ε-loss of one batch; if the UNet is frozen, its gradient reaches only the identity modules.

    Args:
        unet: SDXL UNet with the two-stream processors installed (`install_processors`).
        identity: mappers and projections.
        noisy_latents: `[B, 4, h, w]`, z_t of the target photos.
        noise: `[B, 4, h, w]`, the ε that was added.
        timesteps: `[B]`.
        clip_features: `[B, clip_tokens, clip_width]` of the reference photos.
        face_embedding: `[B, face_width]` of the reference photos.
        time_ids: `[B, 6]`, sizes and crops of the target photos.
        prompt_embeds: `[B, 77, D]` of the target photos' captions, only for the ablation `trained_with_text`.
        pooled_prompt_embeds: `[B, P]`, likewise.

    Returns:
        A scalar.

    Raises:
        ValueError: captions were given although the method variant is trained without text, or the other way around.
    """
    with_text = identity.config.trained_with_text
    if (prompt_embeds is not None, pooled_prompt_embeds is not None) != (with_text, with_text):
        raise ValueError(f"trained_with_text is {with_text}: captions must {'' if with_text else 'not '}be given")
    _, keys, values = identity(clip_features, face_embedding)
    pooled_width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    rows = noisy_latents.shape[0]
    streams = Streams(text=False, identity_keys=keys, identity_values=values)
    if with_text:  # both terms unchanged: AdaIN is for inference only
        streams.style_strength, streams.identity_strength = (
            torch.full((rows,), value, device=noise.device) for value in (0.0, 1.0)
        )
    else:
        pooled_prompt_embeds = torch.zeros(rows, pooled_width, dtype=torch.float32, device=noise.device)
    estimate = unet(
        noisy_latents,
        timesteps,
        prompt_embeds,
        added_cond_kwargs={"text_embeds": pooled_prompt_embeds, "time_ids": time_ids},
        cross_attention_kwargs={"streams": streams},
        return_dict=False,
    )[0]
    return mse_loss(estimate.float(), noise.float())
