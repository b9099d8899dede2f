"""Every sampler against diffusers' own scheduler, on the same model and the same noise."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers_schedulers import CLASSES, STOCHASTIC, scheduler_of

from infid_engines.errors import InputError
from infid_export.sampling import SAMPLERS, SPACINGS, TIMESTEP_SPACINGS
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER, noise_schedule
from infid_export.sampling.samplers import sampler_table
from infid_export.sampling.scheduler_config import read_scheduler

SPACED = {"ddim": TIMESTEP_SPACINGS, "euler": SPACINGS, "dpmpp_2m": SPACINGS, "euler_a": TIMESTEP_SPACINGS}
CASES = [
    pytest.param(sampler, spacing, prediction, zero, id=f"{sampler} {spacing} {prediction}{' zero SNR' * zero}")
    for sampler in SAMPLERS
    for spacing in SPACED.get(sampler, (None,))
    for prediction, zero in (("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False))
    # diffusers has no data prediction for Euler ancestral, and starts at its second step (IndexError) where the first
    # two timesteps round to the same number
    if (sampler, prediction) != ("euler_a", "sample") and (sampler, spacing, zero) != ("dpmpp_2m", "karras", True)
]
WEIGHTS = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 64)) / 8)


def model(x: torch.Tensor, timestep: float) -> torch.Tensor:
    return torch.tanh(x @ WEIGHTS + timestep / 1000)


def noise(index: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(index).standard_normal((2, 64)))


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' schedulers draw the noise 1, 2, … in their steps."""
    counter = count(1)
    for module in STOCHASTIC:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise(next(counter)))


@pytest.mark.parametrize("steps", [4, 30])
@pytest.mark.parametrize(("sampler", "spacing", "prediction", "zero"), CASES)
def test_a_table_walks_as_diffusers(sampler: str, spacing: str | None, prediction: str, zero: bool, steps: int) -> None:
    facts = {"prediction_type": prediction, "rescale_betas_zero_snr": zero}
    scheduler = scheduler_of(sampler, spacing, **facts)
    scheduler.set_timesteps(steps)
    x = noise(0) * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        e = model(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(e, timestep, x).prev_sample
    table = sampler_table({**SDXL_SCHEDULER, **facts}, steps, sampler, spacing)
    found = noise(0) * table.initial_scale
    d = torch.zeros_like(found)
    for index, (timestep, c_in, c_x, c_e, c_d, c_n, k_x, k_e) in enumerate(table.rows.astype(np.float64)):
        assert timestep == pytest.approx(float(scheduler.timesteps[index]), abs=1e-3)
        e = model(found * c_in, timestep)
        found, d = c_x * found + c_e * e + c_d * d + c_n * noise(index + 1), k_x * found + k_e * e
    error = float((found - x).abs().max() / x.pow(2).mean().sqrt())
    # diffusers' Euler computes in fp32, where latents that start at σ = 4096 are rounded by 6e-8 of that
    assert error <= max(1e-5, 1.2e-7 * table.initial_scale)
    assert table.stochastic == (sampler in ("euler_a", "lcm", "tcd"))


def test_exact_timesteps_are_for_samplers_without_a_spacing() -> None:
    exact = {**SDXL_SCHEDULER, "distilled_timesteps": [999, 749, 499, 249]}
    for sampler in ("lcm", "tcd"):
        assert sampler_table(exact, 4, sampler).timesteps.tolist() == [999, 749, 499, 249]
    for sampler in ("ddim", "euler", "dpmpp_2m", "euler_a"):
        found, usual = (sampler_table(config, 30, sampler) for config in (exact, SDXL_SCHEDULER))
        np.testing.assert_array_equal(found.rows, usual.rows)


def test_ddim_is_bit_equal_to_its_closed_form() -> None:
    """(1, c_x, c_e, 0, 0), as it was before there were other samplers."""
    alphas = noise_schedule(SDXL_SCHEDULER).alphas_cumprod
    for steps in range(1, 1000):
        rows = sampler_table(SDXL_SCHEDULER, steps).rows
        timesteps = rows[:, 0].astype(int)
        previous = timesteps - 1000 // steps
        alpha, after = alphas[timesteps], np.where(previous >= 0, alphas[np.maximum(previous, 0)], alphas[0])
        c_e = np.sqrt(1 - after) - np.sqrt(after * (1 - alpha) / alpha)
        np.testing.assert_array_equal(rows[:, 2], np.sqrt(after / alpha).astype(np.float32))
        np.testing.assert_array_equal(rows[:, 3], c_e.astype(np.float32))
        np.testing.assert_array_equal(rows[:, [1, 4, 5]], np.float32([[1, 0, 0]] * steps))


def test_the_noise_schedule_is_bit_equal_to_diffusers() -> None:
    expected = DDIMScheduler(**SDXL_SCHEDULER).alphas_cumprod.double().numpy()
    np.testing.assert_array_equal(noise_schedule(SDXL_SCHEDULER).alphas_cumprod, expected)


def test_at_zero_terminal_snr_the_noise_schedule_is_diffusers() -> None:
    """To the rounding of PyTorch's square root, which MKL approximates."""
    config = {**SDXL_SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    expected = DDIMScheduler(**config).alphas_cumprod.double().numpy()
    found = noise_schedule(config).alphas_cumprod
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[-1] == expected[-1] == 0


@pytest.mark.parametrize(
    ("steps", "sampler", "spacing", "message"),
    [
        *((steps, "ddim", None, "from 1 to 999") for steps in (0, -1, 1000, 1001, 2.5, True)),
        (999, "dpmpp_2m", "leading", "from 1 to 998"),
        (1, "euler", "linspace", "from 2 to 1000"),
        (51, "lcm", None, "from 1 to 50"),
        (4, "heun", None, "no sampler 'heun'"),
        (4, "ddim", "karras", "ddim does not support the spacing 'karras'"),
        (4, "tcd", "trailing", "its timesteps are those of the model's distillation"),
    ],
)
def test_what_a_sampler_does_not_support_is_one_sentence(
    steps: Any, sampler: str, spacing: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sampler_table(SDXL_SCHEDULER, steps, sampler, spacing)


@pytest.mark.parametrize(
    ("config", "sampler", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "ddim", "prediction_type = 'flow_prediction'"),
        ({"beta_schedule": "linear"}, "ddim", "beta_schedule = 'linear'"),
        ({"distilled_timesteps": [399]}, "lcm", "must be 1, not 4: the model was distilled at t = 399"),
        *(
            ({"distilled_timesteps": given}, "lcm", "distilled_timesteps must be whole numbers from 999 down to 0")
            for given in (None, 399, [1000], [-1], [5, 5], [4, 5], [3.0], [True])
        ),
        ({"rescale_betas_zero_snr": True}, "euler", "zero terminal SNR"),
        ({"prediction_type": "sample"}, "euler_a", "does not support a model that predicts the data"),
    ],
)
def test_models_that_a_sampler_cannot_sample_are_named(config: dict[str, Any], sampler: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler_table({**SDXL_SCHEDULER, **config}, 4, sampler)


@pytest.mark.parametrize(
    ("sampler", "spacing"), [(sampler, spacing) for sampler in SAMPLERS for spacing in SPACED.get(sampler, (None,))]
)
def test_a_schedulers_own_configuration_chooses_its_sampler(sampler: str, spacing: str | None) -> None:
    scheduler = scheduler_of(sampler, spacing, prediction_type="v_prediction")
    found = read_scheduler(scheduler.config, CLASSES[sampler][0])
    assert (found.sampler, found.spacing) == (sampler, spacing)
    assert found.schedule["prediction_type"] == "v_prediction"
    assert found.note.endswith(f"as the checkpoint's {CLASSES[sampler][0]}")


def test_what_of_a_scheduler_is_not_applied_is_said() -> None:
    config = {**SDXL_SCHEDULER, "_class_name": "UniPCMultistepScheduler"}
    assert read_scheduler(config).note == (
        "sampler: ddim with leading spacing, in place of the checkpoint's UniPCMultistepScheduler"
    )
    config |= {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_karras_sigmas": True}
    assert read_scheduler(config).note == (
        "sampler: dpmpp_2m with karras spacing, as the checkpoint's DPMSolverMultistepScheduler, without "
        "solver_order = 3"
    )


@pytest.mark.parametrize("field", ["steps_offset", "original_inference_steps"])
@pytest.mark.parametrize("value", ["null", "", -1, 1.5, True])
def test_numbers_of_a_schedule_are_whole(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"The noise schedule's {field} must be"):
        noise_schedule({**SDXL_SCHEDULER, field: value})
