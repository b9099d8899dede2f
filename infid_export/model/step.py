"""One denoising step as a module: UNet, classifier-free guidance and the sampler's update of each stream.

These modules are exported, and the reference pipeline runs them too. The parameters of `forward` are the inputs of the
ONNX graph, one by one and with the same names. The update is a row of a sampler's table, see
`infid_export.sampling.samplers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from infid_export.model.config import IdentityConfig
from infid_export.model.processors import Streams, identity_blocks, install_processors, text_feature_paths


class StreamInputs(NamedTuple):
    """The state of a stream of B samples, and fresh noise.

    Args:
        latents: `[B, 4, h, w]` fp32, x.
        denoised: `[B, 4, h, w]` fp32, d: the data prediction of the last step, zeros before the first.
        noise: `[B, 4, h, w]` fp32, n: standard normal noise; zeros for a sampler that adds none.
    """

    latents: Tensor
    denoised: Tensor
    noise: Tensor


class SamplerInputs(NamedTuple):
    """A row of a sampler's table, and the guidance.

    Args:
        timestep: `[1]` fp32.
        coefficients: `[7]` fp32: c_in, c_x, c_e, c_d, c_n, k_x, k_e.
        guidance: `[B]` fp32; None where there are no unconditional rows.
    """

    timestep: Tensor
    coefficients: Tensor
    guidance: Tensor | None


class PromptInputs(NamedTuple):
    """What the UNet gets of the prompts: R rows, first those of the negative prompt if there is guidance.

    Args:
        embeds: `[R, 77, D]`.
        pooled_embeds: `[R, P]`.
        time_ids: `[R, 6]` fp32.
    """

    embeds: Tensor
    pooled_embeds: Tensor
    time_ids: Tensor


class IdentityInputs(NamedTuple):
    """What the identity stream gets of the person, and how strongly.

    Args:
        keys: `[R, T, S]` of all blocks.
        values: `[R, T, S]`, likewise.
        style_strength: `[B]` fp32, s; None if there is no text stream.
        identity_strength: `[B]` fp32, λ.
    """

    keys: Tensor
    values: Tensor
    style_strength: Tensor | None
    identity_strength: Tensor


class _Step(nn.Module):
    """The common part of all steps: the UNet call and the update of a stream.

    A stream has R rows: 2B with guidance (unconditional, then conditional), else B.

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

    def _advance(
        self, inputs: Sequence[StreamInputs], sampler: SamplerInputs, prompt: PromptInputs, streams: Streams
    ) -> list[StreamInputs]:
        """Run the UNet on all streams at once, and return the next state of each; the noise is kept."""
        copies = 1 if sampler.guidance is None else 2
        rows = torch.cat([stream.latents for stream in inputs for _ in range(copies)]) * sampler.coefficients[0]
        predicted = self.unet(
            rows.to(self.unet.dtype),
            sampler.timestep,
            prompt.embeds,
            # fp32: diffusers' time projection is fp32, and a concatenation of two types is not valid ONNX
            added_cond_kwargs={
                "text_embeds": streams.spread(prompt.pooled_embeds.float()).repeat(len(inputs), 1),
                "time_ids": streams.spread(prompt.time_ids).repeat(len(inputs), 1),
            },
            cross_attention_kwargs={"streams": streams},
            return_dict=False,
        )[0].float()
        # slices, not chunk(): ONNX has no plain counterpart of a list of tensors
        count = copies * inputs[0].latents.shape[0]
        guided = [_guided(predicted[i * count : (i + 1) * count], sampler.guidance) for i in range(len(inputs))]
        return [_next_state(stream, each, sampler) for stream, each in zip(inputs, guided, strict=True)]

    def _streams(self, sampler: SamplerInputs, identity: IdentityInputs, **facts: Any) -> Streams:
        """Spread the per-sample strengths over the rows; the method variant decides on the unconditional ones."""
        style, strength = identity.style_strength, identity.identity_strength
        if sampler.guidance is not None:
            uncond = torch.zeros_like(strength) if self.config.uncond_identity == "off" else strength
            style, strength = None if style is None else style.repeat(2), torch.cat([uncond, strength])
        return Streams(
            identity_keys=identity.keys, identity_values=identity.values,
            style_strength=style, identity_strength=strength, **facts,
        )  # fmt: skip


def _guided(predicted: Tensor, guidance: Tensor | None) -> Tensor:
    """Combine `[2B, ...]` predictions to u + g·(c − u); without guidance there are B of c alone."""
    if guidance is None:
        return predicted
    samples = guidance.shape[0]
    uncond, cond = predicted[:samples], predicted[samples:]
    return uncond + guidance.view(-1, 1, 1, 1) * (cond - uncond)


def _next_state(stream: StreamInputs, predicted: Tensor, sampler: SamplerInputs) -> StreamInputs:
    """Return the latents c_x·x + c_e·e + c_d·d + c_n·n and the data prediction k_x·x + k_e·e."""
    x, d, n = stream
    _, c_x, c_e, c_d, c_n, k_x, k_e = (sampler.coefficients[i] for i in range(7))
    return StreamInputs(c_x * x + c_e * predicted + c_d * d + c_n * n, k_x * x + k_e * predicted, n)


class DenoiseStep(_Step):
    """Both streams in one UNet batch."""

    def forward(
        self,
        text_latents: Tensor,
        text_denoised: Tensor,
        text_noise: Tensor,
        identity_latents: Tensor,
        identity_denoised: Tensor,
        identity_noise: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        identity_keys: Tensor,
        identity_values: Tensor,
        style_strength: Tensor,
        identity_strength: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take one step.

        Args:
            text_latents: of the text stream, see `StreamInputs`.
            text_denoised: likewise.
            text_noise: likewise.
            identity_latents: of the identity stream, see `StreamInputs`.
            identity_denoised: likewise.
            identity_noise: likewise.
            timestep: see `SamplerInputs`.
            coefficients: likewise.
            prompt_embeds: see `PromptInputs`.
            pooled_prompt_embeds: likewise.
            time_ids: likewise.
            identity_keys: see `IdentityInputs`.
            identity_values: likewise.
            style_strength: likewise.
            identity_strength: likewise.
            guidance: see `SamplerInputs`.

        Returns:
            Next latents and data prediction of the text stream, then of the identity stream, `[B, 4, h, w]` fp32.
        """
        text, identity = self.advance(
            [
                StreamInputs(text_latents, text_denoised, text_noise),
                StreamInputs(identity_latents, identity_denoised, identity_noise),
            ],
            SamplerInputs(timestep, coefficients, guidance),
            PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids),
            IdentityInputs(identity_keys, identity_values, style_strength, identity_strength),
        )
        return text.latents, text.denoised, identity.latents, identity.denoised

    def advance(
        self, streams: Sequence[StreamInputs], sampler: SamplerInputs, prompt: PromptInputs, identity: IdentityInputs
    ) -> list[StreamInputs]:
        """Take one step of the text and the identity stream, and return their next state; the noise is kept."""
        return self._advance(streams, sampler, prompt, self._streams(sampler, identity, text=True))


class TextStep(_Step):
    """The text stream alone; returns the per-block features that the identity stream attends to."""

    def forward(
        self,
        text_latents: Tensor,
        text_denoised: Tensor,
        text_noise: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Take one step of the text stream; arguments as in `DenoiseStep`.

        Returns:
            The next latents and the data prediction, then one `[R, N, C]` per transformer block.
        """
        stream = StreamInputs(text_latents, text_denoised, text_noise)
        sampler, streams = SamplerInputs(timestep, coefficients, guidance), Streams(text=True)
        prompt = PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids)
        (following,) = self._advance((stream,), sampler, prompt, streams)
        features = [streams.text_features[path] for path in self.feature_paths]
        return following.latents, following.denoised, *features


class IdentityStep(_Step):
    """The identity stream alone, on the text features of the same step of one template, which B people share."""

    def forward(
        self,
        identity_latents: Tensor,
        identity_denoised: Tensor,
        identity_noise: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        identity_keys: Tensor,
        identity_values: Tensor,
        style_strength: Tensor,
        identity_strength: Tensor,
        text_features: list[Tensor],
        text_scales: list[Tensor] | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take one step of the identity stream; arguments as in `DenoiseStep`, but for one prompt.

        Args:
            identity_latents: `[B, 4, h, w]`, one sample per person; likewise the other inputs of stream and people.
            identity_denoised: as in `DenoiseStep`.
            identity_noise: as in `DenoiseStep`.
            timestep: as in `DenoiseStep`.
            coefficients: as in `DenoiseStep`.
            prompt_embeds: of one prompt, R = 2 with guidance, else 1.
            pooled_prompt_embeds: likewise.
            time_ids: likewise.
            identity_keys: as in `DenoiseStep`.
            identity_values: as in `DenoiseStep`.
            style_strength: as in `DenoiseStep`.
            identity_strength: as in `DenoiseStep`.
            text_features: of `TextStep`, for one prompt; int8 if there are scales.
            text_scales: `[R, 1, C]` fp32 per block, by which the features are multiplied; None if they are floats.
            guidance: as in `DenoiseStep`.

        Returns:
            The next latents and the data prediction.
        """
        stream = StreamInputs(identity_latents, identity_denoised, identity_noise)
        sampler = SamplerInputs(timestep, coefficients, guidance)
        identity = IdentityInputs(identity_keys, identity_values, style_strength, identity_strength)
        if text_scales is not None:
            scaled = (each.float() * scales for each, scales in zip(text_features, text_scales, strict=True))
            text_features = [each.to(self.unet.dtype) for each in scaled]
        features = dict(zip(self.feature_paths, text_features, strict=True))
        people = identity_latents.shape[0]
        streams = self._streams(sampler, identity, text=False, text_features=features, people=people)
        prompt = PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids)
        (following,) = self._advance((stream,), sampler, prompt, streams)
        return following.latents, following.denoised


class SingleStep(_Step):
    """The identity stream without a text stream: plain SDXL whose cross-attention also attends to the person."""

    def forward(
        self,
        identity_latents: Tensor,
        identity_denoised: Tensor,
        identity_noise: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        identity_keys: Tensor,
        identity_values: Tensor,
        identity_strength: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take one step; arguments as in `DenoiseStep`.

        Returns:
            The next latents and the data prediction.
        """
        (following,) = self.advance(
            [StreamInputs(identity_latents, identity_denoised, identity_noise)],
            SamplerInputs(timestep, coefficients, guidance),
            PromptInputs(prompt_embeds, pooled_prompt_embeds, time_ids),
            IdentityInputs(identity_keys, identity_values, None, identity_strength),
        )
        return following.latents, following.denoised

    def advance(
        self, streams: Sequence[StreamInputs], sampler: SamplerInputs, prompt: PromptInputs, identity: IdentityInputs
    ) -> list[StreamInputs]:
        """Take one step of the identity stream, and return its next state; the noise is kept."""
        return self._advance(streams, sampler, prompt, self._streams(sampler, identity, text=False))
