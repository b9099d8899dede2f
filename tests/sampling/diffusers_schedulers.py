"""diffusers' own schedulers, set up as the samplers are."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm, scheduling_tcd

from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

CLASSES = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}  # fmt: skip
STOCHASTIC = (scheduling_lcm, scheduling_tcd, scheduling_euler_ancestral_discrete)


def scheduler_of(sampler: str, spacing: str | None, **config: Any) -> Any:
    name, own = CLASSES[sampler]
    spaced: dict[str, Any] = {"steps_offset": 1, "timestep_spacing": spacing} if spacing else {}
    if spacing == "karras":
        spaced |= {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
    known = {name: SDXL_SCHEDULER[name] for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    return getattr(diffusers, name)(**known, **own, **spaced, **config)
