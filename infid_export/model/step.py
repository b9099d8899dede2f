"""One denoising step as a module: UNet, classifier-free guidance and the DDIM update of each stream.

These modules are exported, and the reference pipeline runs them too. The parameters of `forward` are the inputs of the
ONNX graph, with the same names. DDIM with η = 0 (Song et al.,
arXiv 2010.02502, equation 12) is linear in the latents and the noise estimate: x' = c_x·x + c_ε·ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infid_export.model.config import IdentityConfig
from infid_export.model.processors import Streams, identity_blocks, install_processors, text_feature_paths


class PromptInputs(NamedTuple):
    """The UNet's inputs from a prompt, with R = 2B rows: unconditional, then conditional.

    Args:
        embeds: `[R, 77, D]`.
        pooled_embeds: `[R, P]`.
        time_ids: `[R, 6]` fp32.
    """

    embeds: Tensor
    pooled_embeds: Tensor
    time_ids: Tensor


class IdentityInputs(NamedTuple):
    """The identity stream's inputs from a person, and their strengths; R = 2B.

    Args:
        keys: `[R, T, S]`, all blocks concatenated.
        values: `[R, T, S]`, likewise.
        style_strength: `[B]` fp32, s.
        identity_strength: `[B]` fp32, λ.
    """

    keys: Tensor
    values: Tensor
    style_strength: Tensor
    identity_strength: Tensor


class _Step(nn.Module):
    """What the three steps share: the UNet call and the update of one stream.

    Args:
        unet: diffusers' UNet2DConditionModel; the two-stream processors are installed in it.
        config: the method variant.
        ops: what computes the attention, see `install_processors`.
    """

    def __init__(self, unet: Any, config: IdentityConfig, ops: str = "torch") -> None:
        super().__init__()
        install_processors(unet, config, ops)
        self.unet = unet
        self.config = config
        self.feature_paths = text_feature_paths(identity_blocks(unet))

    def _noise(
        self, latents: Sequence[Tensor], timestep: Tensor, prompt: PromptInputs, streams: Streams
    ) -> list[Tensor]:
        """Return the noise estimate of each stream's latents, `[2B, 4, h, w]` in fp32 each."""
        rows = torch.cat([copy for stream in latents for copy in (stream, stream)])
        copies = len(latents)
        noise = self.unet(
            rows.to(self.unet.dtype),
            timestep,
            prompt.embeds,
            # fp32: diffusers' time projection is fp32, and a concatenation of two types is not valid ONNX
            added_cond_kwargs={
                "text_embeds": prompt.pooled_embeds.float().repeat(copies, 1),
                "time_ids": prompt.time_ids.repeat(copies, 1),
            },
            cross_attention_kwargs={"streams": streams},
            return_dict=False,
        )[0]
        noise = noise.float()
        rows_per_stream = prompt.embeds.shape[0]
        return [noise[i * rows_per_stream : (i + 1) * rows_per_stream] for i in range(copies)]

    def _streams(self, text: bool, identity: IdentityInputs) -> Streams:
        """Spread the per-sample strengths over unconditional and conditional rows."""
        strength = identity.identity_strength
        uncond = strength if self.config.uncond_identity == "zeros" else torch.zeros_like(strength)
        return Streams(
            text=text,
            identity_keys=identity.keys,
            identity_values=identity.values,
            style_strength=identity.style_strength.repeat(2),
            identity_strength=torch.cat([uncond, strength]),
        )


def _update(latents: Tensor, noise: Tensor, guidance: Tensor, coefficients: Tensor) -> Tensor:
    """Guide a `[2B, ...]` noise estimate and take the DDIM step from `[B, 4, h, w]` latents."""
    samples = latents.shape[0]
    uncond, cond = noise[:samples], noise[samples:]
    guided = uncond + guidance.view(-1, 1, 1, 1) * (cond - uncond)
    return coefficients[0] * latents + coefficients[1] * guided


class DenoiseStep(_Step):
    """Both streams in one UNet batch.

    Shapes: B samples, R = 2B rows (unconditional, then conditional).
    """

    def forward(
        self,
        text_latents: Tensor,
        identity_latents: Tensor,
        timestep: Tensor,
        ddim_coefficients: Tensor,
        guidance: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        identity_keys: Tensor,
        identity_values: Tensor,
        style_strength: Tensor,
        identity_strength: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            text_latents: `[B, 4, h, w]` fp32.
            identity_latents: `[B, 4, h, w]` fp32.
            timestep: `[1]` fp32.
            ddim_coefficients: `[2]` fp32, c_x and c_ε.
            guidance: `[B]` fp32.
            prompt_embeds: `[R, 77, D]`.
            pooled_prompt_embeds: `[R, P]`.
            time_ids: `[R, 6]` fp32.
            identity_keys: `[R, T, S]`.
            identity_values: `[R, T, S]`.
            style_strength: `[B]` fp32, s.
            identity_strength: `[B]` fp32, λ.

        Returns:
            Both streams' next latents, `[B, 4, h, w]` fp32.
        """
        text_noise, identity_noise = self.predict_noise(
            (text_latents, identity_latents),
            timestep,
            PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids),
            IdentityInputs(identity_keys, identity_values, style_strength, identity_strength),
        )
        return (
            _update(text_latents, text_noise, guidance, ddim_coefficients),
            _update(identity_latents, identity_noise, guidance, ddim_coefficients),
        )

    def predict_noise(
        self, latents: Sequence[Tensor], timestep: Tensor, prompt: PromptInputs, identity: IdentityInputs
    ) -> list[Tensor]:
        """Return the noise estimates of the text and the identity stream, `[R, 4, h, w]` fp32 each.

        Args:
            latents: of the text stream and the identity stream, `[B, 4, h, w]` fp32 each.
            timestep: `[1]` fp32.
            prompt: inputs of both streams.
            identity: inputs of the identity stream.
        """
        return self._noise(latents, timestep, prompt, self._streams(True, identity))


class TextStep(_Step):
    """The text stream alone; returns the per-block features that the identity stream attends to."""

    def forward(
        self,
        text_latents: Tensor,
        timestep: Tensor,
        ddim_coefficients: Tensor,
        guidance: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
    ) -> tuple[Tensor, ...]:
        """Take one step of the text stream; arguments as in `DenoiseStep`.

        Returns:
            The next latents, then one `[R, N, C]` per transformer block.
        """
        streams = Streams(text=True)
        prompt = PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids)
        (noise,) = self._noise([text_latents], timestep, prompt, streams)
        features = [streams.text_features[path] for path in self.feature_paths]
        return _update(text_latents, noise, guidance, ddim_coefficients), *features


class IdentityStep(_Step):
    """The identity stream alone, on the text features of the same step."""

    def forward(
        self,
        identity_latents: Tensor,
        timestep: Tensor,
        ddim_coefficients: Tensor,
        guidance: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        identity_keys: Tensor,
        identity_values: Tensor,
        style_strength: Tensor,
        identity_strength: Tensor,
        text_features: list[Tensor],
    ) -> Tensor:
        """Take one step of the identity stream; arguments as in `DenoiseStep` and `TextStep`."""
        identity = IdentityInputs(identity_keys, identity_values, style_strength, identity_strength)
        streams = self._streams(False, identity)
        streams.text_features = dict(zip(self.feature_paths, text_features, strict=True))
        prompt = PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids)
        (noise,) = self._noise([identity_latents], timestep, prompt, streams)
        return _update(identity_latents, noise, guidance, ddim_coefficients)
