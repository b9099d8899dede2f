"""The reference pipeline: Infinite-ID in PyTorch, with diffusers' conventions. All engines are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from infid_engines.errors import InputError
from infid_engines.validation import finite_number, path_of, require_callable, shown, text_of, texts_of, whole_number
from infid_export.faces.reader import FaceInputs
from infid_export.model.checkpoints.file_kind import checkpoint_file
from infid_export.model.checkpoints.files import local_folder, unreachable
from infid_export.model.checkpoints.folder import NETWORKS, check_identity, read_checkpoint
from infid_export.model.checkpoints.loading import load_network
from infid_export.model.components import cast_module
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.encoders import IdentityEncoder, ImageEncoder
from infid_export.model.identity import IdentityModules
from infid_export.model.identity_lora import merge_identity_lora
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import ModelSource
from infid_export.model.step import DenoiseStep, IdentityInputs, PromptInputs, SamplerInputs, SingleStep, StreamInputs
from infid_export.sampling import KARRAS
from infid_export.sampling.samplers import SamplerTable, chosen_sampler, sampler_table
from infid_export.sampling.scheduler_config import read_scheduler

_SCHEDULERS: Mapping[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
_Generator = np.random.Generator | torch.Generator
Generators = _Generator | Sequence[_Generator] | None
_PARTS = (*NETWORKS, "scheduler", "tokenizer", "tokenizer_2")

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class InfiniteIDOutput(BaseOutput):
    """Result of the pipeline.

    Args:
        images: the identity stream's images: PIL images, an array `[B, H, W, 3]`, or latents `[B, 4, h, w]`.
        text_latents: `[B, 4, h, w]`, the text stream's final latents; None if there is no text stream.
    """

    images: Any
    text_latents: Tensor | None


class InfiniteIDPipeline(StableDiffusionXLPipeline):
    """SDXL with a second stream for the identity. Create it with `from_pretrained` or `from_source`."""

    scheduler: Any

    @classmethod
    def from_pretrained(
        cls, base: str | Path, *, identity: str | Path, image_encoder: Any = None, ops: str = "torch", **kwargs: Any
    ) -> InfiniteIDPipeline:
        """Load an SDXL checkpoint and identity weights.

        Args:
            base: folder in diffusers' format, or hub id. For a single file, use `from_source`.
            identity: identity weights (safetensors).
            image_encoder: an `ImageEncoder` with the weights' `clip_layer`, for `encode_identity`.
            ops: `torch`, or `triton` for the fused kernels (fp16 or bf16 on a GPU).
            kwargs: passed to diffusers, such as `torch_dtype`, `variant`, and components that replace the
                checkpoint's.

        Raises:
            InputError: the checkpoint is not SDXL, or its weights are incomplete; the identity weights do not fit,
                or read another layer of the image encoder; or `ops` does not support their method variant.
        """
        path_of("The base model", base, "Give a folder in diffusers' format, or a hub id.")
        path_of("The identity weights", identity, "Give a safetensors file.")
        folder = _checkpoint_folder(cls, base, kwargs)
        read_checkpoint(folder, {name: _configuration(kwargs[name]) for name in _PARTS if name in kwargs})
        own = {
            name: load_network(folder, name, _dtype(kwargs, name), kwargs.get("variant"))
            for name in NETWORKS
            if name not in kwargs
        }
        pipe: InfiniteIDPipeline = super().from_pretrained(folder, **kwargs, **own)
        width = pipe.unet.config.cross_attention_dim
        config = read_config(identity)
        check_identity(config, None, width, str(base))
        merge_identity_lora(pipe.unet, Path(identity), config)
        modules = IdentityModules.load(identity, identity_blocks(pipe.unet), pipe.unet.dtype)
        return pipe._with_identity(modules, image_encoder, ops)

    @classmethod
    def from_source(
        cls, source: ModelSource, dtype: torch.dtype = torch.float32, ops: str = "torch"
    ) -> InfiniteIDPipeline:
        """Assemble the pipeline from a model source; `ops` as in `from_pretrained`."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        tokenizers = [
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                model_max_length=77,
                pad_token=(tokenizer.padding or {})["pad_token"],
                eos_token="<|endoftext|>",
            )
            for tokenizer in map(Tokenizer.from_str, source.tokenizers())
        ]
        pipe = cls(
            vae=source.load("vae", dtype),
            text_encoder=source.load("text_encoder", dtype),
            text_encoder_2=source.load("text_encoder_2", dtype),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=source.load("unet", dtype),
            scheduler=_scheduler(source),
            force_zeros_for_empty_prompt=source.zero_negative,
            add_watermarker=False,
        )
        identity: Any = source.load("identity", dtype)
        image_encoder: Any = source.load("image_encoder", dtype) if identity.config.reads_image else None
        return pipe._with_identity(identity, image_encoder, ops)

    def _with_identity(
        self, identity: IdentityModules, image_encoder: ImageEncoder | None, ops: str
    ) -> InfiniteIDPipeline:
        _check_features(identity.config, image_encoder)
        self._identity_modules = identity.to(self.device)
        self._identity_image_encoder = image_encoder
        step = SingleStep if identity.config.streams == "one" else DenoiseStep
        self._step = step(self.unet, identity.config, ops)
        return self

    @property
    def identity_config(self) -> IdentityConfig:
        """The method variant."""
        return self._identity_modules.config

    def use_identity(self, identity: IdentityModules | None = None, ops: str = "torch", **choices: str | None) -> None:
        """Switch to other identity weights or another variant of the method, on the same base model.

        Args:
            identity: the weights, without the LoRA that their file may have; None keeps the current ones.
            ops: as in `from_pretrained`.
            choices: fields of `IdentityConfig` that replace the weights' own.

        Raises:
            InputError: there is no such choice, `ops` does not support it, or the weights read another layer of the
                image encoder.
        """
        modules = identity or self._identity_modules
        modules.config = modules.config.with_choices(**choices)
        self._with_identity(modules, self._identity_image_encoder, ops)

    @torch.no_grad()
    def encode_identity(self, inputs: FaceInputs) -> tuple[Tensor, Tensor]:
        """Encode a face or an image into the keys and values of all layers.

        Args:
            inputs: crop and embedding, as far as the identity weights read them, see `infid_export.faces`.

        Returns:
            `[2, T, S]` keys and values; row 0 is unconditional.

        Raises:
            InputError: the pipeline was loaded without an image encoder.
        """
        if self._identity_image_encoder is None and self.identity_config.reads_image:
            raise InputError("The pipeline has no image encoder.", fix="Load it with image_encoder=ImageEncoder(...).")
        encoder = IdentityEncoder(self._identity_image_encoder, self._identity_modules)
        arrays = inputs.arrays(self.identity_config.encoder_inputs)
        _, keys, values = encoder(**{name: torch.from_numpy(each) for name, each in arrays.items()})
        return keys, values

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        identity: tuple[Tensor, Tensor],
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        style_strength: float = 1.0,
        identity_strength: float = 1.0,
        sampler: str | None = None,
        spacing: str | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        text_latents: Tensor | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        output_type: str = "pil",
    ) -> InfiniteIDOutput:
        """Generate images of a person.

        Args:
            prompt: one, or a list of B.
            identity: keys and values from `encode_identity`.
            negative_prompt: what to avoid; None is what the checkpoint was trained with, zero embeddings for SDXL.
            height: pixels; None is the model's default.
            width: likewise.
            num_inference_steps: number of steps.
            guidance_scale: g of each stream's classifier-free guidance u + g·(c − u). 1 is the conditional prediction
                alone, at half the cost; this is what diffusers means by 0 for few-step models.
            style_strength: s of AdaIN; without effect if there is no text stream.
            identity_strength: λ.
            sampler: one of `infid_export.sampling.SAMPLERS`; None is that of the pipeline's `scheduler`.
            spacing: of the sampler's timesteps, one of `SPACINGS`; None is that of the pipeline's `scheduler`.
            generator: source of the initial noise, and of the noise that a stochastic sampler adds; one, or one per
                prompt.
            latents: `[B, 4, h, w]` initial noise, instead of a generator.
            text_latents: likewise for the text stream; None uses the same noise. Not where there is no text stream.
            callback_on_step_end: diffusers' callback; it gets a copy of the latents, and may return new ones.
            output_type: `pil`, `np`, `pt` or `latent`.

        Returns:
            The identity stream's images, and the text stream's latents if there is one.

        Raises:
            InputError: an argument does not fit.
        """
        prompts = texts_of("A prompt", prompt, "Give a string, or a list of strings.")
        if not prompts:
            raise InputError("No prompt was given.", fix="Give at least one.")
        if negative_prompt is not None:
            text_of("The negative prompt", negative_prompt, "Give one string, which goes with every prompt.")
        batch, device = len(prompts), self._execution_device
        height, width = self._pixels("height", height), self._pixels("width", width)
        table = self._table(sampler, spacing, num_inference_steps)
        fix = "The paper uses a guidance of 5 and strengths of 1."
        guidance_scale = finite_number("guidance_scale", guidance_scale, fix)
        style_strength = finite_number("style_strength", style_strength, fix)
        identity_strength = finite_number("identity_strength", identity_strength, fix)
        require_callable("callback_on_step_end", callback_on_step_end, "Give a callback with diffusers' signature.")
        if not isinstance(output_type, str) or output_type not in _OUTPUT_TYPES:
            raise InputError(
                f"There is no output type {shown(output_type)}.", fix=f"Use one of {', '.join(_OUTPUT_TYPES)}."
            )
        _check_identity(identity)
        cond, uncond, pooled, pooled_uncond = self.encode_prompt(
            prompts,
            device=device,
            negative_prompt=None if negative_prompt is None else [negative_prompt] * batch,
            do_classifier_free_guidance=True,
        )
        shape = (batch, 4, height // self.vae_scale_factor, width // self.vae_scale_factor)
        for name, given in (("latents", latents), ("text_latents", text_latents)):
            _check_latents(name, given, shape)
        single = self.identity_config.streams == "one"
        if single and text_latents is not None:
            raise InputError("text_latents have no effect: there is no text stream.", fix="Leave them out.")
        draw = _noise(shape, generator)
        start = (draw() if latents is None else latents).to(device, torch.float32)
        text_start = start if text_latents is None else text_latents.to(device, torch.float32)
        # without guidance the unconditional rows would have no effect
        copies = 1 if guidance_scale == 1 else 2
        prompt_inputs = PromptInputs(
            torch.cat([uncond, cond][-copies:]),
            torch.cat([pooled_uncond, pooled][-copies:]),
            torch.tensor([[height, width, 0, 0, height, width]] * (copies * batch), dtype=torch.float32, device=device),
        )
        keys, values = (tensor[-copies:].repeat_interleave(batch, 0).to(device, self.unet.dtype) for tensor in identity)
        strengths = [torch.full((batch,), value, device=device) for value in (style_strength, identity_strength)]
        identity_inputs = IdentityInputs(keys, values, *strengths)
        guidance = None if copies == 1 else torch.full((batch,), guidance_scale, device=device)
        zeros = torch.zeros_like(start)
        starts = [start] if single else [text_start, start]
        streams = [StreamInputs(each * table.initial_scale, zeros, zeros) for each in starts]
        rows = torch.from_numpy(table.rows).to(device)
        with self.progress_bar(total=len(table)) as progress:
            for index, row in enumerate(rows):
                if table.stochastic:
                    own = draw().to(device, torch.float32)
                    fresh = [own if text_latents is None else draw().to(device, torch.float32), own][-len(streams) :]
                    streams = [stream._replace(noise=noise) for stream, noise in zip(streams, fresh, strict=True)]
                sampler_inputs = SamplerInputs(row[:1], row[1:], guidance)
                streams = self._step.advance(streams, sampler_inputs, prompt_inputs, identity_inputs)
                if callback_on_step_end is not None:
                    current = streams[-1].latents
                    changed = callback_on_step_end(self, index, row[0], {"latents": current.clone()}) or {}
                    streams[-1] = streams[-1]._replace(latents=changed.get("latents", current))
                progress.update()
        text, current = None if single else streams[0].latents, streams[-1].latents
        if output_type == "latent":
            return InfiniteIDOutput(current, text)
        images = self._decode(current)
        return InfiniteIDOutput(self.image_processor.postprocess(images, output_type=output_type), text)

    def _pixels(self, name: str, value: int | None) -> int:
        if value is None:
            side: int = self.unet.config.sample_size * self.vae_scale_factor
            return side
        fix = f"Give a multiple of {self.vae_scale_factor}, or leave it out."
        pixels = whole_number(name, value, fix, least=self.vae_scale_factor)
        if pixels % self.vae_scale_factor:
            raise InputError(f"{name} must be a multiple of {self.vae_scale_factor}, not {pixels}.", fix=fix)
        return pixels

    def _table(self, sampler: str | None, spacing: str | None, steps: int) -> SamplerTable:
        """Return the table of the asked-for sampler; of the pipeline's scheduler where nothing is asked for."""
        own = read_scheduler(self.scheduler.config, type(self.scheduler).__name__)
        return sampler_table(own.schedule, steps, *chosen_sampler(sampler, spacing, own.sampler, own.spacing))

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode to `[B, 3, 8h, 8w]` fp32. A VAE with `force_upcast` decodes in fp32, as in diffusers."""
        held = self.vae.dtype
        if held == torch.float16 and self.vae.config.force_upcast:
            cast_module(self.vae, torch.float32)
        try:
            scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
            return self.vae.decode(scaled, return_dict=False)[0].float()
        finally:
            cast_module(self.vae, held)


def _check_features(config: IdentityConfig, image_encoder: nn.Module | None) -> None:
    """Reject an image encoder that returns other features than the mapper reads, which may have the same shape."""
    if not isinstance(image_encoder, ImageEncoder) or not config.reads_image:
        return  # training gives a stand-in, since it caches the features
    if image_encoder.layer != config.clip_layer:
        raise InputError(
            f"The identity weights read the image encoder's layer {config.clip_layer}, but this one returns "
            f"{image_encoder.layer}.",
            fix=f"Give ImageEncoder(visual, layer={config.clip_layer!r}).",
        )


def _check_identity(identity: Any) -> None:
    tensors = identity if isinstance(identity, list | tuple) else ()
    if len(tensors) != 2 or not all(isinstance(each, Tensor) and each.ndim == 3 for each in tensors):
        raise InputError(
            f"identity must be keys and values [2, T, S], not {type(identity).__name__}.",
            fix="Use the result of encode_identity.",
        )


def _check_latents(name: str, latents: Any, shape: tuple[int, ...]) -> None:
    if latents is None:
        return
    if not isinstance(latents, Tensor) or latents.shape != shape or not bool(latents.isfinite().all()):
        what = list(latents.shape) if isinstance(latents, Tensor) else shown(latents)
        raise InputError(
            f"{name} must be a finite tensor {list(shape)}, not {what}.",
            fix="Sample it with torch.randn, or leave it out.",
        )


def _checkpoint_folder(kind: Any, base: str | Path, options: Mapping[str, Any]) -> Path:
    """Return the folder of a checkpoint; from the hub, diffusers downloads the files that the options need.

    Raises:
        InputError: there is none, or a file at the path; the message says what the file is.
    """
    if checkpoint_file(str(base)) is not None:
        raise InputError(
            f"{base} is a single-file checkpoint, but from_pretrained reads folders in diffusers' format.",
            fix="Use InfiniteIDPipeline.from_source(open_source(file, identity=…, image_encoder=…)), with open_source "
            "from infid_export.model.opening.",
        )
    found = local_folder(str(base))
    if found is not None:
        return found
    try:
        return Path(kind.download(str(base), **options))
    except Exception as error:  # the hub's errors have no common public base
        raise unreachable(str(base), error) from error


def _configuration(part: Any) -> dict[str, Any]:
    """Return the configuration of a network, scheduler or tokenizer from the caller."""
    config = getattr(part, "config", {})
    values = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
    return {**values, "_class_name": type(part).__name__}


def _dtype(options: Mapping[str, Any], name: str) -> torch.dtype:
    """Return the dtype that diffusers would load a component in."""
    asked = options.get("dtype", options.get("torch_dtype"))  # the newer name, then the older
    if isinstance(asked, dict):
        asked = asked.get(name, asked.get("default"))
    return asked if isinstance(asked, torch.dtype) else torch.float32


def _scheduler(source: ModelSource) -> Any:
    """Return diffusers' scheduler that samples as a model does by default."""
    sampling = source.architecture.sampling
    spaced = {"use_karras_sigmas": True} if sampling.spacing == KARRAS else {}
    return _SCHEDULERS[sampling.sampler].from_config({**source.scheduler, **spaced})


def _noise(shape: tuple[int, ...], generator: Generators) -> Callable[[], Tensor]:
    """Return a function that draws standard normal noise; of several generators, one image is drawn from each."""
    several = generator if isinstance(generator, Sequence) else None
    for each in several if several is not None else [generator]:
        if not isinstance(each, np.random.Generator | torch.Generator | type(None)):
            raise InputError(
                f"generator must be a numpy or torch generator, not {shown(each)}.",
                fix="Give numpy.random.default_rng(0), or a list with one per prompt.",
            )
    if several is not None:
        if len(several) != shape[0]:
            raise InputError(f"{len(several)} generators do not fit {shape[0]} prompt(s).", fix="Give one per prompt.")
        draws = [_noise((1, *shape[1:]), each) for each in several]
        return lambda: torch.cat([draw() for draw in draws])
    if isinstance(generator, torch.Generator):
        return partial(torch.randn, shape, generator=generator, device=generator.device)
    source = generator if isinstance(generator, np.random.Generator) else np.random.default_rng()
    return lambda: torch.from_numpy(source.standard_normal(shape, dtype=np.float32))
