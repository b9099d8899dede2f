"""Reading a checkpoint's scheduler configuration: its noise schedule, and the sampler it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infid_export.sampling import KARRAS
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER, noise_schedule

Config = Mapping[str, Any]
# The sampler that does what a scheduler of diffusers does; the others are replaced by DDIM, the paper's sampler.
_SAMPLER_OF: Mapping[str, str] = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
# Values of fields of the noise schedule that a scheduler takes where its configuration has none.
_ABSENT: Mapping[str, Config] = {
    "ddim": {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True},
    "euler": {"timestep_spacing": "linspace", "steps_offset": 0},
    "dpmpp_2m": {"timestep_spacing": "linspace", "steps_offset": 0},
    "euler_a": {"timestep_spacing": "linspace", "steps_offset": 0},
    "lcm": {"steps_offset": 0, "set_alpha_to_one": True},
    "tcd": {"steps_offset": 0, "set_alpha_to_one": True},
}
_DISTILLED = ("lcm", "tcd")
# Settings of a scheduler that its sampler here does not have, with the values that mean the same as leaving them out.
_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "interpolation_type": ("linear", None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "solver_order": (2, None),
    "algorithm_type": ("dpmsolver++", None),
    "solver_type": ("midpoint", None),
    "final_sigmas_type": ("zero", None),
    "timestep_scaling": (10.0, None),
}


@dataclass(frozen=True)
class ModelSampling:
    """How a model is sampled by default.

    Args:
        schedule: fields of `SDXL_SCHEDULER`, and `original_inference_steps` or `distilled_timesteps` of a few-step
            model.
        sampler: one of `SAMPLERS`.
        spacing: one of `SPACINGS`; None for `lcm` and `tcd`.
        note: one sentence on the sampler and what of the configuration is not applied.
    """

    schedule: Mapping[str, Any]
    sampler: str
    spacing: str | None
    note: str

    @property
    def distilled(self) -> bool:
        """Whether the model was distilled to few steps without guidance."""
        return self.sampler in _DISTILLED


SDXL_SAMPLING = ModelSampling(SDXL_SCHEDULER, "ddim", "leading", "")


def read_scheduler(config: Config, name: str | None = None) -> ModelSampling:
    """Read the configuration of a scheduler of diffusers.

    Args:
        config: content of `scheduler_config.json`.
        name: the class that reads it; None is the configuration's own.

    Raises:
        InputError: the noise schedule is not supported.
    """
    kind = str(name or config.get("_class_name"))
    sampler = _SAMPLER_OF.get(kind, "ddim")
    known = {**SDXL_SCHEDULER, **(_ABSENT[sampler] if kind in _SAMPLER_OF else {})}
    fields = (*SDXL_SCHEDULER, "original_inference_steps", "distilled_timesteps")
    schedule = {**known, **{field: config[field] for field in fields if config.get(field) is not None}}
    schedule["clip_sample"] = False
    noise_schedule(schedule)
    spacing = None if sampler in _DISTILLED else str(schedule["timestep_spacing"])
    if config.get("use_karras_sigmas") and sampler in ("euler", "dpmpp_2m"):
        spacing = KARRAS
    chosen = f"sampler: {sampler}" + (f" with {spacing} spacing" if spacing else "")
    if kind not in _SAMPLER_OF:
        note = f"{chosen}, in place of the checkpoint's {kind}"
    else:
        left_out = [
            f"{field} = {config[field]!r}" for field, same in _SETTINGS.items() if config.get(field) not in same
        ]
        note = f"{chosen}, as the checkpoint's {kind}" + (f", without {', '.join(left_out)}" if left_out else "")
    return ModelSampling(schedule, sampler, spacing, note)
