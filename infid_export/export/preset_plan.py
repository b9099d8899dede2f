"""What a preset changes in the plan of a build. Imports are light."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from infid_export.model.sources import ModelSource
from infid_export.sampling.presets import PRESETS, Preset
from infid_export.sampling.samplers import sampler_table


def with_preset(source: ModelSource, name: str | None) -> ModelSource:
    """Return a model that is sampled by a preset, a key of `PRESETS`; None leaves it as it is.

    Raises:
        InputError: the sampler does not support the model.
    """
    if name is None:
        return source
    preset, found = PRESETS[name], copy(source)
    settings: dict[str, Any] = {
        "timestep_spacing": preset.spacing,
        "prediction_type": preset.prediction,
        "distilled_timesteps": list(preset.timesteps),
    }
    own = {field: value for field, value in source.scheduler.items() if field != "distilled_timesteps"}
    found.scheduler = {**own, **{field: value for field, value in settings.items() if value}}
    sampling = replace(
        source.architecture.sampling,
        steps=preset.steps, guidance=preset.guidance, sampler=preset.sampler, spacing=preset.spacing,
    )  # fmt: skip
    found.architecture = replace(source.architecture, sampling=sampling)
    found.notes = (*source.notes, _note(name, preset, source.scheduler["prediction_type"]))
    sampler_table(found.scheduler, sampling.steps, sampling.sampler, sampling.spacing)
    return found


def with_guidance(guidance: bool, name: str | None) -> bool:
    """Return whether steps have unconditional rows: as chosen, but not for a preset without guidance."""
    return guidance and (name is None or PRESETS[name].guided)


def usual_size(source: ModelSource, name: str | None) -> int:
    """Return the default height and width: the model's, or less for a preset of a model that was trained on less."""
    largest = None if name is None else PRESETS[name].size
    return source.architecture.size if largest is None else min(source.architecture.size, largest)


def _note(name: str, preset: Preset, prediction: str) -> str:
    """Say what a preset decides; `prediction` is what the model predicts without it."""
    sampler = f"{preset.sampler} with {preset.spacing} spacing" if preset.spacing else preset.sampler
    facts = [f"steps {preset.steps}", f"sampler {sampler}, instead of the model's own"]
    if preset.timesteps:
        facts.append(f"at t = {', '.join(map(str, preset.timesteps))}")
    if preset.prediction:
        instead = "" if prediction == "epsilon" else f", instead of {prediction}"
        facts.append(f"prediction_type {preset.prediction}{instead}")
    facts.append(f"guidance {preset.guidance:g}")
    if not preset.guided:
        facts.append("steps without unconditional rows, as with --no-guidance")
    return f"preset {name}, for {preset.model}: {'; '.join(facts)}"


def preset_defaults(name: str | None) -> Mapping[str, str]:
    """Return what a folder's defaults have besides the settings: the preset's name, if there is one."""
    return {} if name is None else {"preset": name}
