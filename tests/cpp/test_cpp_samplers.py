from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from infid_engines.errors import InputError
from infid_export.sampling import PREDICTIONS, SAMPLERS, SPACINGS
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_export.sampling.samplers import sampler_table

if TYPE_CHECKING:
    from cpp_library import Probe

STEPS = (1, 2, 3, 4, 5, 7, 8, 20, 25, 30, 49, 50, 51, 333, 999, 1000)


def configs() -> Iterator[dict[str, Any]]:
    """Every prediction, with and without zero terminal SNR, of full and of few-step models."""
    for prediction in PREDICTIONS:
        for zero in (False, True):
            yield {**SDXL_SCHEDULER, "prediction_type": prediction, "rescale_betas_zero_snr": zero}
    yield {**SDXL_SCHEDULER, "steps_offset": 0, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    yield {**SDXL_SCHEDULER, "original_inference_steps": 4, "timestep_spacing": "linspace"}
    yield {**SDXL_SCHEDULER, "original_inference_steps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    yield {**SDXL_SCHEDULER, "distilled_timesteps": [399]}
    yield {**SDXL_SCHEDULER, "distilled_timesteps": [999, 749, 499, 249], "prediction_type": "sample"}
    yield {**SDXL_SCHEDULER, "num_train_timesteps": 2}
    yield {**SDXL_SCHEDULER, "num_train_timesteps": 137, "original_inference_steps": 200}


def expected(config: Mapping[str, Any], steps: int, sampler: str, spacing: str | None) -> str:
    """What the probe prints: the table in bits, or an error."""
    try:
        with np.errstate(all="ignore"):
            table = sampler_table(config, steps, sampler, spacing)
    except InputError as error:
        return f"{error.problem}|{error.fix}"
    rows = table.rows.astype(">f4").tobytes().hex()
    return f"{float(table.initial_scale)!r} {int(table.stochastic)} {rows}"


def differences(cpp_probe: Probe, requests: list[tuple[dict[str, Any], int, str, str | None]]) -> list[Any]:
    names = ("config", "steps", "sampler", "spacing")
    lines = [json.dumps(dict(zip(names, request, strict=True))) + "\n" for request in requests]
    found = cpp_probe("samplers", input="".join(lines)).stdout.split("\n")[:-1]
    assert len(found) == len(requests)
    return [
        (request, line[:200], wanted[:200])
        for request, line in zip(requests, found, strict=True)
        if line != (wanted := expected(*request))
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tables_and_errors_are_those_of_python(cpp_probe: Probe, sampler: str) -> None:
    """Bit for bit, with the sentence where Python rejects the combination."""
    requests = [
        (config, steps, sampler, spacing)
        for config in configs()
        for spacing in (None, *SPACINGS)
        for steps in STEPS
        if steps < 100 or config["prediction_type"] == "epsilon"
    ]
    assert differences(cpp_probe, requests) == []


@pytest.mark.parametrize(
    "request_",
    [
        ({}, 0, "ddim", None),
        ({}, -5, "euler", "karras"),
        ({}, 1001, "euler", "trailing"),
        ({}, 30, "heun", None),
        ({}, 30, "it's", None),
        ({}, 30, "x" * 100, None),
        ({}, 30, "ddim", "\n"),
        ({}, 30, "ddim", ""),
        ({"steps_offset": -1}, 30, "ddim", None),
        ({"steps_offset": 2**40}, 30, "ddim", None),
        ({"original_inference_steps": 0}, 4, "lcm", None),
        *(({"distilled_timesteps": given}, 1, "lcm", None) for given in ([1000], [-1], [5, 5], [4, 5], [5, -1])),
        *(({"distilled_timesteps": [399]}, steps, "tcd", None) for steps in (0, 2, 50)),
        ({"beta_schedule": "linear"}, 30, "ddim", None),
        ({"clip_sample": True}, 30, "ddim", None),
        ({"timestep_spacing": "karras"}, 30, "ddim", None),
        ({"prediction_type": "flow"}, 30, "ddim", None),
        ({"rescale_betas_zero_snr": True}, 30, "ddim", None),
    ],
    ids=lambda request: "-".join(map(str, (*request[0], *request[1:])))[:40],
)
def test_errors_have_the_sentences_of_python(cpp_probe: Probe, request_: tuple[Any, int, str, str | None]) -> None:
    changes, steps, sampler, spacing = request_
    config = {**SDXL_SCHEDULER, **changes}
    assert "|" in expected(config, steps, sampler, spacing)
    assert differences(cpp_probe, [(config, steps, sampler, spacing)]) == []
