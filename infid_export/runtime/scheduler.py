"""The DDIM table: with η = 0 a step is c_x·x + c_ε·ε (Song et al., arXiv 2010.02502, equation 12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from infid_engines.errors import InputError

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


def ddim_table(config: Mapping[str, Any], steps: int) -> np.ndarray[Any, Any]:
    """Return one row a step: timestep, c_x, c_ε.

    Args:
        config: fields of `SDXL_SCHEDULER`, named as in diffusers' DDIMScheduler.
        steps: number of steps.

    Returns:
        `[steps, 3]` float32, first step first.

    Raises:
        InputError: the number of steps or the schedule is not supported.
    """
    trained = int(config["num_train_timesteps"])
    if not 1 <= steps <= trained:
        raise InputError(f"The number of steps must be from 1 to {trained}, not {steps}.", fix="30 is usual.")
    for name in ("beta_schedule", "timestep_spacing", "prediction_type", "set_alpha_to_one", "clip_sample"):
        if config.get(name, SDXL_SCHEDULER[name]) != SDXL_SCHEDULER[name]:
            raise InputError(
                f"The schedule has {name} = {config[name]!r}; only {SDXL_SCHEDULER[name]!r} is supported.",
                fix="Use a base model with SDXL's schedule.",
            )
    # fp32 as diffusers does it, so that both walk exactly the same ᾱ
    roots = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, trained, dtype=np.float32)
    alphas = np.cumprod(1 - roots**2, dtype=np.float32).astype(np.float64)
    stride = trained // steps
    timesteps = (np.arange(steps) * stride).round()[::-1].astype(np.int64) + int(config["steps_offset"])
    previous = timesteps - stride
    alpha = alphas[np.minimum(timesteps, trained - 1)]
    alpha_previous = np.where(previous >= 0, alphas[np.maximum(previous, 0)], alphas[0])
    c_x = np.sqrt(alpha_previous / alpha)
    c_noise = np.sqrt(1 - alpha_previous) - np.sqrt(alpha_previous * (1 - alpha) / alpha)
    return np.stack([timesteps.astype(np.float64), c_x, c_noise], axis=1).astype(np.float32)
