"""The noise schedule that a model was trained with, and what it predicts: ᾱ of every timestep, as PyTorch computes it.

numpy alone: this runs on servers without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from infid_engines.errors import InputError
from infid_engines.validation import whole_number
from infid_export.sampling import PREDICTIONS, TIMESTEP_SPACINGS

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
    "rescale_betas_zero_snr": False,
}
# ᾱ of the last timestep where it is rescaled to zero and a sampler divides by it: as in diffusers, the least of fp16
_NEARLY_ZERO = 2.0**-24


_FIX = "Use a base model with SDXL's schedule."


class NoiseSchedule(NamedTuple):
    """The noise schedule of a model, and what the model predicts."""

    alphas_cumprod: Array  # ᾱ of each timestep
    prediction: str
    steps_offset: int
    final_alpha_cumprod: float  # ᾱ after DDIM's last step
    distilled_steps: int  # timesteps that a few-step model (LCM, TCD) was distilled with
    exact_timesteps: tuple[int, ...]  # all that a few-step model can be sampled at; empty where it leaves a choice

    @property
    def trained(self) -> int:
        """The number of timesteps."""
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Array:
        """Noise over signal of each timestep; finite at the last one too."""
        alphas = self.alphas_cumprod.copy()
        alphas[-1] = max(alphas[-1], _NEARLY_ZERO)
        found: Array = np.sqrt((1 - alphas) / alphas)
        return found

    def sigmas_at(self, timesteps: Array) -> Array:
        """Return σ of timesteps, interpolated linearly where they have fractions."""
        return np.interp(timesteps, np.arange(self.trained), self.sigmas)

    def distilled_timesteps(self, steps: int) -> list[int]:
        """Return timesteps of a few-step model, the noisiest first: its own, or evenly spaced by index."""
        if self.exact_timesteps:
            return list(self.exact_timesteps)
        known = np.arange(1, self.distilled_steps + 1) * (self.trained // self.distilled_steps) - 1
        indices = np.floor(np.linspace(0, len(known), steps, endpoint=False)).astype(int)
        return [int(each) for each in known[::-1][indices]]


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read a scheduler's configuration.

    Args:
        config: fields as in `SDXL_SCHEDULER`, and `original_inference_steps` or `distilled_timesteps` of a few-step
            model.

    Raises:
        InputError: the schedule is not supported.
    """
    supported = {
        "beta_schedule": (SDXL_SCHEDULER["beta_schedule"],), "clip_sample": (SDXL_SCHEDULER["clip_sample"],),
        "timestep_spacing": TIMESTEP_SPACINGS, "prediction_type": PREDICTIONS,
    }  # fmt: skip
    for name, values in supported.items():
        if config.get(name, SDXL_SCHEDULER[name]) not in values:
            raise InputError(
                f"The noise schedule has {name} = {config[name]!r}; supported: {', '.join(map(str, values))}.",
                fix=_FIX,
            )
    alphas = _alphas_cumprod(
        float(config["beta_start"]), float(config["beta_end"]), int(config["num_train_timesteps"]),
        bool(config.get("rescale_betas_zero_snr", False)),
    )  # fmt: skip
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction == "epsilon" and alphas[-1] == 0:
        raise InputError(
            "The noise schedule has zero terminal SNR, where the noise tells nothing about the data, but the model's "
            "prediction_type is epsilon.",
            fix="If the model predicts v, set prediction_type to v_prediction in its scheduler_config.json.",
        )
    return NoiseSchedule(
        alphas,
        prediction,
        whole_number("The noise schedule's steps_offset", config["steps_offset"], _FIX, least=0),
        1.0 if config.get("set_alpha_to_one", False) else float(alphas[0]),
        whole_number(
            "The noise schedule's original_inference_steps", config.get("original_inference_steps", 50), _FIX, least=1
        ),
        _exact_timesteps(config.get("distilled_timesteps", ()), len(alphas)),
    )


def _exact_timesteps(given: Any, trained: int) -> tuple[int, ...]:
    whole = isinstance(given, list | tuple) and all(type(each) is int for each in given)
    if not whole or any(before <= after for before, after in pairwise((trained, *given, -1))):
        raise InputError(
            f"The noise schedule's distilled_timesteps must be whole numbers from {trained - 1} down to 0, each less "
            "than the one before.",
            fix=_FIX,
        )
    return tuple(given)


def _alphas_cumprod(beta_start: float, beta_end: float, count: int, zero_terminal_snr: bool) -> Array:
    """Return ᾱ `[count]` float64, bit-equal to PyTorch's: fp32 values, interpolated from both ends.

    With zero terminal SNR it is rescaled (Lin et al., arXiv 2305.08891, algorithm 1), then equal but for square roots.
    """
    first, last = np.float32(beta_start**0.5), np.float32(beta_end**0.5)
    step = float((last - first) / np.float32(count - 1))
    index = np.arange(count)
    roots = np.where(index < count // 2, float(first) + step * index, float(last) - step * (count - 1 - index))
    alphas = np.float32(1) - roots.astype(np.float32) ** 2
    if zero_terminal_snr:
        signal = np.sqrt(_product(alphas))
        signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
        powers = signal**2
        alphas = np.concatenate([powers[:1], powers[1:] / powers[:-1]])
        alphas = np.float32(1) - (np.float32(1) - alphas)
    return _product(alphas).astype(np.float64)


def _product(alphas: Array) -> Array:
    """Return the cumulative product, multiplied in fp64 and rounded to fp32, as PyTorch does."""
    found: Array = np.cumprod(alphas.astype(np.float64)).astype(np.float32)
    return found
