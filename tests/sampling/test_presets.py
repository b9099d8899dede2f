"""Every preset against diffusers' own scheduler, set up as the model's card says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from diffusers_schedulers import STOCHASTIC

from infid_export.export.preset_plan import with_preset
from infid_export.model.opening import open_source
from infid_export.sampling.presets import PRESETS
from infid_export.sampling.samplers import SamplerTable, sampler_table

# What SDXL base has in scheduler_config.json; the cards change the scheduler's class and these settings.
SDXL_BASE: Mapping[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading",
    "prediction_type": "epsilon", "interpolation_type": "linear", "skip_prk_steps": True,
}  # fmt: skip


class Card(NamedTuple):
    """The lines of a model card that decide the sampling."""

    scheduler: str
    changes: Mapping[str, Any]
    set_timesteps: Mapping[str, Any]
    step: Mapping[str, Any] = {}


def _steps(number: int) -> Mapping[str, Any]:
    return {"num_inference_steps": number}


_TRAILING = {"timestep_spacing": "trailing"}
CARDS: Mapping[str, Card] = {
    "lightning-1": Card("EulerDiscreteScheduler", {**_TRAILING, "prediction_type": "sample"}, _steps(1)),
    **{f"lightning-{steps}": Card("EulerDiscreteScheduler", _TRAILING, _steps(steps)) for steps in (2, 4, 8)},
    "hyper-1": Card("TCDScheduler", {}, _steps(1), {"eta": 1.0}),
    "hyper-1-unet": Card("LCMScheduler", {}, {"timesteps": [800]}),
    **{f"hyper-{steps}": Card("DDIMScheduler", _TRAILING, _steps(steps)) for steps in (2, 4, 8)},
    **{f"hyper-{steps}-cfg": Card("DDIMScheduler", _TRAILING, _steps(steps)) for steps in (8, 12)},
    **{f"turbo-{steps}": Card("EulerAncestralDiscreteScheduler", _TRAILING, _steps(steps)) for steps in (1, 4)},
    **{f"lcm-{steps}": Card("LCMScheduler", {}, _steps(steps)) for steps in (4, 8)},
    "dmd2-1": Card("LCMScheduler", {}, {"timesteps": [399]}),
    "dmd2-4": Card("LCMScheduler", {}, {"timesteps": [999, 749, 499, 249]}),
}
WEIGHTS = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 64)) / 8)


def network(x: torch.Tensor, timestep: float) -> torch.Tensor:
    return torch.tanh(x @ WEIGHTS + timestep / 1000)


def noise(index: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(index).standard_normal((2, 64)))


def of_diffusers(card: Card) -> tuple[list[float], list[torch.Tensor]]:
    """Return the timesteps and the latents after each step."""
    scheduler = getattr(diffusers, card.scheduler).from_config(dict(SDXL_BASE), **card.changes)
    scheduler.set_timesteps(**card.set_timesteps)
    x = noise(0) * float(scheduler.init_noise_sigma)
    walked = []
    for timestep in scheduler.timesteps:
        e = network(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(e, timestep, x, **card.step).prev_sample
        walked.append(x)
    return scheduler.timesteps.tolist(), walked


def of_table(table: SamplerTable) -> list[torch.Tensor]:
    x = noise(0) * table.initial_scale
    d, walked = torch.zeros_like(x), []
    for index, (timestep, c_in, c_x, c_e, c_d, c_n, k_x, k_e) in enumerate(table.rows.astype(np.float64)):
        e = network(x * c_in, timestep)
        x, d = c_x * x + c_e * e + c_d * d + c_n * noise(index + 1), k_x * x + k_e * e
        walked.append(x)
    return walked


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' schedulers draw the noise 1, 2, … in their steps."""
    counter = count(1)
    for module in STOCHASTIC:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise(next(counter)))


def test_the_table_in_the_documentation_is_right() -> None:
    shown = []
    for line in (Path(__file__).parents[2] / "docs/checkpoints.md").read_text().splitlines():
        names = [name for name in re.findall(r"`([\w-]+)`", line) if name in PRESETS]
        if not line.startswith("|") or not names:
            continue
        _, model, _, _, sampler, spacing, steps, guidance, *_ = (cell.strip() for cell in line.split("|"))
        timesteps = model.partition("t = ")[2]
        for name, number in zip(names, steps.split(", "), strict=True):
            preset = PRESETS[name]
            assert (sampler, spacing) == (f"`{preset.sampler}`", f"`{preset.spacing}`" if preset.spacing else "–")
            assert (int(number), float(guidance)) == (preset.steps, preset.guidance)
            assert timesteps == ", ".join(map(str, preset.timesteps))
            assert ("predicts the data" in model) == (preset.prediction == "sample")
            assert ("512 × 512" in model) == (preset.size == 512)
        shown += names
    assert shown == list(PRESETS)


def test_every_preset_has_a_card() -> None:
    assert list(CARDS) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_walks_as_its_card_says(name: str) -> None:
    source = with_preset(open_source("random-sdxl"), name)
    usual = source.architecture.sampling
    table = sampler_table(source.scheduler, usual.steps, usual.sampler, usual.spacing)
    timesteps, expected = of_diffusers(CARDS[name])
    assert table.timesteps.tolist() == timesteps
    for found, wanted in zip(of_table(table), expected, strict=True):
        error = float((found - wanted).abs().max() / wanted.pow(2).mean().sqrt())
        assert error <= 2e-6, (name, error)
