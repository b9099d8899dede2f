"""The demo model's UNet: text to image, with SDXL's conditioning, before any identity.

Conventions are SDXL's: ε-prediction on its schedule, both text encoders' penultimate states concatenated, the second
encoder's pooled embedding and the image's sizes added to the timestep embedding, zeros where there is no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear

from infid_engines.progress import Stage
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_training.recipe.autoencoder import encode
from infid_training.recipe.contrast import token_ids
from infid_training.recipe.crops import FACE_SIDE, Squares
from infid_training.recipe.files import read_tensors, write_tensors
from infid_training.recipe.fitting import Fit
from infid_training.recipe.pictures import Pictures

Array = np.ndarray[Any, Any]

FIT = Fit(steps=3600, learning_rate=1e-3, weight_decay=0.01)
_BATCH = 32
# Every other step trains on faces only, cropped from the latents: three times as many in the time of one step.
_FACES = 96
_WITHOUT_PROMPT = 0.1
_DESCRIBED = 0.4
# A third of the drawn images have a style; in training half of them do, since they are harder than photos.
_STYLED = 0.5
_WITH_TEXT_MEAN = 0.5
# Timesteps with little noise count less, by 5 / SNR (Hang et al., arXiv 2303.09556): the face is decided earlier.
_GREATEST_SNR = 5.0
# People are recognized by their faces, a fifth of an image: errors there count five times as much as elsewhere.
_FACE_WEIGHT = 5.0
_FACE_RADIUS = 1.5  # times the distance between the eyes
_FACE_EDGE = 0.025  # of the image's side
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class Texts:
    """The frozen text encoders: from captions to the UNet's conditioning.

    Args:
        words: both tokenizers.
        text_encoder: transformers' CLIPTextModel.
        text_encoder_2: transformers' CLIPTextModelWithProjection.
    """

    words: tuple[Tokenizer, Tokenizer]
    text_encoder: Any
    text_encoder_2: Any

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return prompt embeddings `[B, 77, D]` and pooled embeddings `[B, P]`."""
        ids, ids_2 = (token_ids(tokenizer, captions).to(self.text_encoder.device) for tokenizer in self.words)
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def encode_pictures(vae: Any, pictures: Pictures, path: Path, stage: Stage) -> Tensor:
    """Return the scaled latents of all images `[N, 4, 32, 32]` fp16; cached in a safetensors file.

    Args:
        vae: the trained VAE, after `scale_latents`.
        pictures: images to encode.
        path: the file.
        stage: shown the progress.
    """
    if not path.is_file():
        parts = []
        for start in range(0, len(pictures), _ENCODED_AT_ONCE):
            with torch.autocast(vae.device.type, torch.bfloat16):  # off by 0.3 % of the latents, in half the time
                means = encode(vae, pictures.pixels[start : start + _ENCODED_AT_ONCE])
            parts.append((vae.config.scaling_factor * means.float()).half().cpu())
            stage.update(start / len(pictures), f"image {start} of {len(pictures)}")
        write_tensors({"latents": torch.cat(parts)}, path)
    return read_tensors(path)["latents"]


def face_area(marks: Array, size: int) -> Tensor:
    """Return a mask of the faces, `[B, 1, size, size]`: 1 around the landmarks, falling smoothly to 0.

    Args:
        marks: `[B, 5, 2]` landmarks as fractions of the side, the eyes first.
        size: size of the latents.
    """
    points = torch.from_numpy(marks).float()
    radius = _FACE_RADIUS * (points[:, 0] - points[:, 1]).norm(dim=-1)
    places = (torch.arange(size) + 0.5) / size
    x, y = points.mean(1)[..., None].unbind(1)
    distance = torch.hypot((places - x)[:, None, :], (places - y)[:, :, None])
    return torch.sigmoid((radius[:, None, None] - distance) / _FACE_EDGE)[:, None]


class TextMean:
    """Adds the mean of the text's values to the cross-attention of chosen rows, while a UNet trains.

    AdaIN-mean adds it for a person whose tokens have zero mean (`IdentityConfig.center_tokens`). A UNet that has never
    seen it reads it as the text said twice, which guidance amplifies; one that has seen it ignores it.

    Args:
        unet: UNet that gets the addition, until `remove`.
    """

    def __init__(self, unet: Any) -> None:
        self._rows = {rows: torch.zeros(rows, 1, 1, device=unet.device) for rows in (_BATCH, _FACES)}
        self._hooks = [
            module.register_forward_hook(self._add, with_kwargs=True)
            for path, module in unet.named_modules()
            if path.endswith(".attn2")
        ]

    def choose(self, rows: Array) -> None:
        """Set which rows of the next batch get it, `[B]` bool; B is one of the recipe's two."""
        self._rows[len(rows)].copy_(torch.from_numpy(rows).view(-1, 1, 1))

    def remove(self) -> None:
        """Restore the UNet."""
        for hook in self._hooks:
            hook.remove()

    def _add(self, attention: Any, inputs: Any, named: dict[str, Any], output: Tensor) -> Tensor:
        text = named["encoder_hidden_states"]
        mean = attention.to_v(text).mean(1, keepdim=True)
        return output + self._rows[len(text)] * linear(mean, attention.to_out[0].weight)


@dataclass(frozen=True)
class BaseLoss:
    """The loss of a step, by its number: even steps train on whole images, odd ones on faces only.

    A face is conditioned as SDXL conditions a crop: the image's size, the crop's corner, the crop's size.

    Args:
        unet: diffusers' UNet2DConditionModel, also compiled.
        texts: the frozen text encoders.
        latents: `[N, 4, 32, 32]` of all images.
        pictures: captions and face landmarks of the images.
        text_mean: the UNet's `TextMean`.
    """

    unet: Any
    texts: Texts
    latents: Tensor
    pictures: Pictures
    text_mean: TextMean

    def __call__(self, step: int) -> Mapping[str, Tensor]:
        """Return the loss; the step number decides images, noise and timesteps."""
        random = np.random.default_rng((5, step))
        whole = self.latents.shape[-1]
        rows, side = (_FACES, FACE_SIDE) if step % 2 else (_BATCH, whole)
        styled = random.random(rows) < _STYLED
        plain, stylized = (each[random.integers(len(each), size=rows)] for each in self.pictures.by_style)
        chosen = np.where(styled, stylized, plain)
        captions = [self.pictures.caption(int(index), random.random() < _DESCRIBED) for index in chosen]
        prompts, pooled = self.texts.encode(captions)
        device = prompts.device
        scheduler = DDIMScheduler(**SDXL_SCHEDULER)
        kept = torch.from_numpy((random.random(rows) >= _WITHOUT_PROMPT).astype(np.float32)).to(device)
        self.text_mean.choose(random.random(rows) < _WITH_TEXT_MEAN)
        marks = self.pictures.marks[chosen]
        squares = Squares.around(marks, whole, side, random)
        clean = squares.cut(self.latents[torch.from_numpy(chosen)].float()).to(device)
        noise = torch.from_numpy(random.standard_normal(clean.shape, np.float32)).to(device)
        steps = random.integers(scheduler.config.num_train_timesteps, size=rows)
        timesteps = torch.from_numpy(steps).to(device)
        # on two CPU cores, bf16, plain attention and a compiled UNet together nearly halve the time of a step
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            estimate = self.unet(
                scheduler.add_noise(clean, noise, timesteps),
                timesteps,
                prompts * kept[:, None, None],
                added_cond_kwargs={
                    "text_embeds": pooled * kept[:, None],
                    "time_ids": squares.time_ids().to(device),
                },
                return_dict=False,
            )[0].float()
        cumulative = scheduler.alphas_cumprod[steps].to(device)
        weight = (_GREATEST_SNR * (1 - cumulative) / cumulative).clamp(max=1.0)
        share = 1 + (_FACE_WEIGHT - 1) * squares.cut(face_area(marks, whole)).to(device)
        error = weight[:, None, None, None] * (estimate - noise).square()
        return {"epsilon": (share * error).mean() / share.mean()}
