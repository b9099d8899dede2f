from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from infid_engines.errors import InputError
from infid_export.scheduler import SDXL_SCHEDULER, ddim_table


@pytest.mark.parametrize("steps", [1, 4, 30, 50])
def test_table_walks_as_diffusers(steps):
    scheduler = DDIMScheduler(**SDXL_SCHEDULER)
    scheduler.set_timesteps(steps)
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 4, 8, 8))
    expected, found = torch.from_numpy(x), x
    table = ddim_table(SDXL_SCHEDULER, steps)
    assert table.shape == (steps, 3)
    for timestep, row in zip(scheduler.timesteps, table, strict=True):
        noise = random.standard_normal(x.shape)
        expected = scheduler.step(torch.from_numpy(noise), timestep, expected).prev_sample
        assert int(timestep) == int(row[0])
        found = row[1] * found + row[2] * noise
    assert np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy()) < 1e-6


# 1000 steps would start at timestep 1000, for which diffusers has no noise level either (IndexError)
@pytest.mark.parametrize("steps", [0, -1, 1000, 1001, 2.5, True])
def test_impossible_step_counts_are_rejected(steps):
    with pytest.raises(InputError, match="from 1 to 999"):
        ddim_table(SDXL_SCHEDULER, steps)


def test_other_predictions_are_rejected():
    with pytest.raises(InputError, match="prediction_type"):
        ddim_table({**SDXL_SCHEDULER, "prediction_type": "v_prediction"}, 30)
