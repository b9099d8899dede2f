"""The DDIM table: with η = 0 a step is c_x·x + c_ε·ε (Song et al., arXiv 2010.02502, equation 12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_engines.validation import shown

Array = np.ndarray[Any, Any]

SDXL_SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def ddim_table(config: Mapping[str, Any], steps: int) -> Array:
    """Return one row per step: timestep, c_x, c_ε. Equal to diffusers' DDIMScheduler.

    Args:
        config: fields of `SDXL_SCHEDULER`, named as in diffusers' DDIMScheduler.
        steps: number of steps.

    Returns:
        `[steps, 3]` float32, first step first.

    Raises:
        InputError: the number of steps or the schedule is not supported.
    """
    for name in ("beta_schedule", "timestep_spacing", "prediction_type", "set_alpha_to_one", "clip_sample"):
        if config.get(name, SDXL_SCHEDULER[name]) != SDXL_SCHEDULER[name]:
            raise InputError(
                f"The schedule has {name} = {config[name]!r}; only {SDXL_SCHEDULER[name]!r} is supported.",
                fix="Use a base model with SDXL's schedule.",
            )
    trained, offset = int(config["num_train_timesteps"]), int(config["steps_offset"])
    # the first timestep, (steps − 1)·stride + offset, must be one the model was trained on
    most = trained - offset
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or not 1 <= steps <= most:
        raise InputError(
            f"The number of steps must be a whole number from 1 to {most}, not {shown(steps)}.", fix="30 is usual."
        )
    alphas = _alphas_cumprod(float(config["beta_start"]), float(config["beta_end"]), trained)
    stride = trained // int(steps)
    timesteps = np.arange(steps)[::-1] * stride + offset
    previous = timesteps - stride
    alpha = alphas[timesteps]
    alpha_previous = np.where(previous >= 0, alphas[np.maximum(previous, 0)], alphas[0])
    c_x = np.sqrt(alpha_previous / alpha)
    c_noise = np.sqrt(1 - alpha_previous) - np.sqrt(alpha_previous * (1 - alpha) / alpha)
    return np.stack([timesteps, c_x, c_noise], axis=1).astype(np.float32)


def _alphas_cumprod(beta_start: float, beta_end: float, count: int) -> Array:
    """Return ᾱ `[count]`, bit-equal to PyTorch's: fp32 values interpolated from both ends, multiplied in fp64."""
    first, last = np.float32(beta_start**0.5), np.float32(beta_end**0.5)
    step = float((last - first) / np.float32(count - 1))
    index = np.arange(count)
    roots = np.where(index < count // 2, float(first) + step * index, float(last) - step * (count - 1 - index))
    alphas = np.float32(1) - roots.astype(np.float32) ** 2
    product: Array = np.cumprod(alphas.astype(np.float64)).astype(np.float32).astype(np.float64)
    return product
