"""What the manifest of an engine folder needs for generating images, besides what every manifest needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infid_engines.documents import record
from infid_engines.errors import EngineFolderError
from infid_engines.manifest import GraphRecord, Manifest
from infid_export.sampling.samplers import sampler_table

_ENCODERS = ("text_encoder", "text_encoder_2")
_STEPS = {"two": "denoise_step", "one": "single_step"}  # the graph of a step from a prompt, by streams of the model
TEXT = (*_ENCODERS, "text_step")  # the graphs that make a template
TEMPLATES = ("text_step", "identity_step")  # the steps with templates
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


def streams_of(manifest: Manifest) -> str:
    """Return `one` if the folder's steps have the identity stream alone, else `two`."""
    return "one" if _STEPS["one"] in manifest.graphs else "two"


def step_name(manifest: Manifest) -> str:
    """Return the graph of a step from a prompt."""
    return _STEPS[streams_of(manifest)]


def latent_graphs(manifest: Manifest) -> tuple[str, ...]:
    """Return the graphs from a prompt to latents."""
    return (*_ENCODERS, step_name(manifest))


def image_graphs(streams: str) -> tuple[str, ...]:
    """Return the graphs from a photo and a prompt to an image, for a model with `two` streams or `one`."""
    return ("identity_encoder", *_ENCODERS, _STEPS[streams], "vae_decoder")


def template_graph(manifest: Manifest, name: str) -> GraphRecord:
    """Return the record of a graph that makes or uses templates.

    Raises:
        EngineFolderError: it has one stream, or was built without the graph.
    """
    if streams_of(manifest) == "one":
        raise EngineFolderError(
            "A template is a text stream, but these engines have one stream, the identity's.",
            fix="Leave the template out, or build with --streams two "
            f"{' '.join(f'--graph {each}' for each in ('default', *TEMPLATES))}.",
        )
    return manifest.graph(name)


def only_steps(manifest: Manifest) -> int | None:
    """Return the number of steps of a model that was distilled at fixed timesteps; None if there is a choice."""
    return len(manifest.scheduler.get("distilled_timesteps", ())) or None


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
        step = step_name(manifest)
        if step in manifest.graphs:
            latents = [spec for spec in manifest.graphs[step].inputs if spec.name == "identity_latents"]
            if len(latents) != 1 or len(latents[0].shape) != 4:
                raise ValueError(f"graphs.{step} has no four-dimensional input identity_latents")
    except ValueError as error:
        raise EngineFolderError(
            f"The manifest cannot be used: {error}.", fix="Build the engine folder again with `infid-export build`."
        ) from error


def _chosen(kind: Any, values: Any) -> dict[str, Any]:
    return {name: values[name] for name in kind.__dataclass_fields__ if name in values}
