"""What the manifest of an engine folder needs for generating images, besides what every manifest needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infid_engines.documents import record
from infid_engines.errors import EngineFolderError
from infid_engines.manifest import Manifest
from infid_export.sampling.samplers import sampler_table

GENERATE = ("text_encoder", "text_encoder_2", "denoise_step")  # the graphs that generate latents
TEXT = ("text_encoder", "text_encoder_2", "text_step")  # the graphs that make a template
IMAGE_GRAPHS = ("identity_encoder", *GENERATE, "vae_decoder")  # the graphs from a photo to an image
_MOST_TIMESTEPS = 100_000  # rows of the noise schedule's table; SDXL's has 1000


@dataclass(frozen=True)
class _Defaults:
    steps: int
    guidance: float
    style_strength: float
    identity_strength: float
    negative_prompt: str | None
    sampler: str
    spacing: str | None
    preset: str | None = None


@dataclass(frozen=True)
class _Schedule:
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    steps_offset: int


def require_usable(manifest: Manifest) -> None:
    """Reject a manifest without defaults, with an impossible schedule, or with latents of a wrong rank.

    Raises:
        EngineFolderError: the message says what is wrong.
    """
    try:
        record(_Defaults, _chosen(_Defaults, manifest.defaults), "defaults")
        schedule = record(_Schedule, _chosen(_Schedule, manifest.scheduler), "scheduler")
        if not 2 <= schedule.num_train_timesteps <= _MOST_TIMESTEPS:
            raise ValueError(f"scheduler.num_train_timesteps is {schedule.num_train_timesteps}")
        if not 0 < schedule.beta_start <= schedule.beta_end < 1 or schedule.steps_offset not in (0, 1):
            raise ValueError("scheduler has impossible betas, or a steps_offset other than 0 or 1")
        usual = manifest.defaults
        sampler_table(manifest.scheduler, usual["steps"], usual["sampler"], usual["spacing"])
        if "denoise_step" in manifest.graphs:
            latents = [spec for spec in manifest.graphs["denoise_step"].inputs if spec.name == "identity_latents"]
            if len(latents) != 1 or len(latents[0].shape) != 4:
                raise ValueError("graphs.denoise_step has no four-dimensional input identity_latents")
    except ValueError as error:
        raise EngineFolderError(
            f"The manifest cannot be used: {error}.", fix="Build the engine folder again with `infid-export build`."
        ) from error


def _chosen(kind: Any, values: Any) -> dict[str, Any]:
    return {name: values[name] for name in kind.__dataclass_fields__ if name in values}
