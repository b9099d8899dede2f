"""The demo model's VAE: 4 channels like SDXL's, but with a downsampling factor of 4.

With SDXL's factor of 8, a face of 70 pixels has too few latents for its features: 23.8 dB after 10,000 steps, against
27.4 dB after 5,000 with 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from infid_training.recipe.fitting import Fit
from infid_training.recipe.pictures import SIZE, Pictures

Array = np.ndarray[Any, Any]

FIT = Fit(steps=5000, learning_rate=2e-3, weight_decay=0.0)
_BATCH = 8
_CROP = 64  # pixels
# After this fraction of the steps, a quarter as many whole images: group norms see different statistics in them.
_WHOLE_FROM = 0.15
# Weight of the KL divergence from a normal distribution, averaged over latents: keeps them smooth enough to denoise.
_DIVERGENCE = 1e-5
_MEASURED = 256  # images


def autoencoder_loss(vae: Any, pictures: Pictures, step: int) -> Mapping[str, Tensor]:
    """Return the loss terms of one step: L1 and squared error, L1 error of the image gradients, and KL divergence.

    Args:
        vae: diffusers' AutoencoderKL.
        pictures: images to sample from.
        step: decides what is sampled: first crops, every second one around a face, where there is most to learn; then
            whole images.
    """
    random = np.random.default_rng((1, step))
    whole = step >= _WHOLE_FROM * FIT.steps
    if whole:
        shown = pictures.pixels[random.integers(len(pictures), size=_BATCH * _CROP**2 // SIZE**2)]
    else:
        shown = np.stack([_crop(pictures, random, row % 2 == 1) for row in range(_BATCH)])
    wanted = to_signal(shown).to(vae.device)
    distribution = vae.encode(wanted).latent_dist
    drawn = vae.decode(distribution.sample()).sample
    edges = [l1_loss(drawn.diff(dim=axis), wanted.diff(dim=axis)) for axis in (2, 3)]
    return {
        "difference": l1_loss(drawn, wanted),
        "square": 2 * mse_loss(drawn, wanted),
        "edges": 0.5 * torch.stack(edges).sum(),
        "divergence": _DIVERGENCE * distribution.kl().mean() / distribution.mean[0].numel(),
    }


def _crop(pictures: Pictures, random: np.random.Generator, at_face: bool) -> Array:
    index = int(random.integers(len(pictures)))
    corner = random.integers(0, SIZE - _CROP + 1, 2)
    if at_face:
        center = pictures.marks[index].mean(0)[::-1] * SIZE + random.integers(-16, 17, 2)
        corner = np.clip((center - _CROP / 2).astype(int), 0, SIZE - _CROP)
    top, left = corner
    return pictures.pixels[index, top : top + _CROP, left : left + _CROP]


def to_signal(pixels: Array) -> Tensor:
    """Turn `[B, H, W, 3]` uint8 into the `[B, 3, H, W]` fp32 in [−1, 1] that networks take."""
    signal = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
    return signal.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encode(vae: Any, pixels: Array) -> Tensor:
    """Return the means of the latents of `[B, H, W, 3]` uint8 images, `[B, 4, H / 4, W / 4]`, unscaled."""
    means: Tensor = vae.encode(to_signal(pixels).to(vae.device)).latent_dist.mean
    return means


@torch.no_grad()
def scale_latents(vae: Any, pictures: Pictures) -> None:
    """Rescale the weights around the latents, so that the latents have the deviation SDXL's scaling factor expects.

    Args:
        vae: the trained VAE; the images it decodes stay the same.
        pictures: some of these images are encoded to measure the deviation.
    """
    some = pictures.pixels[:: max(1, len(pictures) // _MEASURED)]
    factor = 1 / (vae.config.scaling_factor * encode(vae, some).std())
    means = slice(0, vae.config.latent_channels)
    vae.quant_conv.weight[means] *= factor
    vae.quant_conv.bias[means] *= factor
    vae.quant_conv.bias[means.stop :] += 2 * factor.log()  # the logarithms of the variances
    vae.post_quant_conv.weight /= factor
