"""Checks from its configurations that a checkpoint is what this package supports: SDXL.

Every field that changes a result is applied or rejected by name, and an unknown field is rejected: see the tables in
`fields`. Imports are light, so that this can run before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from infid_engines.errors import InputError
from infid_export.model.checkpoints.fields import (
    CLASSES,
    MODEL_INDEX,
    PIPELINES,
    SCHEDULE,
    SCHEDULERS,
    TEXT_ENCODER,
    UNET,
    VAE,
    Fields,
)

Config = Mapping[str, Any]
_SDXL = "Use SDXL base or a fine-tune of it."
# More than any network has; a larger configuration would only exhaust the machine.
_MOST_LAYERS, _LARGEST = 256, 1 << 20
_LAYERS = ("num_hidden_layers", "layers_per_block", "transformer_layers_per_block")


def check_model_index(config: Config, where: str, replaced: Collection[str] = ()) -> None:
    """Check that `model_index.json` describes SDXL's pipeline and components.

    Args:
        config: its content.
        where: its name, for the error.
        replaced: components that do not come from the checkpoint; they may be anything.

    Raises:
        InputError: the pipeline, a component or a field is not SDXL's.
    """
    name = config.get("_class_name")
    if name not in PIPELINES:
        raise InputError(f"{where} is of {_shown(name)}, not of StableDiffusionXLPipeline.", fix=_SDXL)
    parts = {*CLASSES, "scheduler"}
    _check_fields({key: value for key, value in config.items() if key not in parts and not _nothing(value)},
                  MODEL_INDEX, where)  # fmt: skip
    zeros = config.get("force_zeros_for_empty_prompt", True)
    if not isinstance(zeros, bool):
        raise InputError(f"{where} has force_zeros_for_empty_prompt = {zeros!r}.", fix="It must be true or false.")
    for part in sorted(parts - set(replaced)):
        kinds = tuple(SCHEDULERS) if part == "scheduler" else CLASSES[part]
        entry = config.get(part)
        kind = entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
        if kind not in kinds:
            raise InputError(f"{where} has the {part} {_shown(kind)}; only {_listed(kinds)} can be used.", fix=_SDXL)


def check_scheduler(config: Config, where: str, name: str | None = None) -> None:
    """Check that a model was trained with SDXL's noise schedule, or with that schedule at zero terminal SNR.

    Args:
        config: configuration of the scheduler that the model was saved with.
        where: its name, for the error.
        name: the class that reads it; None uses the configuration's own.

    Raises:
        InputError: the scheduler samples another kind of model, or has an unknown field.
    """
    kind = name or config.get("_class_name")
    if not isinstance(kind, str) or kind not in SCHEDULERS:
        raise InputError(
            f"{where} is of {_shown(kind)}, which does not sample models like SDXL (but flow matching or EDM).",
            fix="Use a checkpoint that was trained with SDXL's noise schedule.",
        )
    _check_fields({**SCHEDULERS[kind], **config}, SCHEDULE, where)


def check_unet(config: Config, where: str) -> None:
    """Check that a UNet supports two-stream attention and SDXL's conditioning.

    Raises:
        InputError: a field has an unsupported value, is unknown, or is missing.
    """
    if config.get("addition_embed_type") != "text_time":
        raise InputError(
            f"{where} is not of an SDXL checkpoint: it has addition_embed_type = "
            f"{config.get('addition_embed_type')!r}, not 'text_time'.",
            fix=_SDXL,
        )
    _check_class(config, "UNet2DConditionModel", where)
    _check_fields(config, UNET, where)
    _positive(config, where, "in_channels", "sample_size", "cross_attention_dim", "addition_time_embed_dim",
              "projection_class_embeddings_input_dim")  # fmt: skip
    _channels(config, where)


def check_vae(config: Config, where: str) -> None:
    """Check that a VAE's latents are what SDXL's UNet reads: 4 channels, multiplied by one factor.

    Raises:
        InputError: as in `check_unet`.
    """
    _check_class(config, "AutoencoderKL", where)
    _check_fields(config, VAE, where)
    _channels(config, where)
    factor = config.get("scaling_factor", 0.18215)  # diffusers' default
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise InputError(f"{where} has scaling_factor = {factor!r}, which is not a positive number.", fix=_SDXL)


def check_text_encoder(config: Config, where: str) -> None:
    """Check that a text encoder is a CLIP that reads 77 tokens.

    Raises:
        InputError: as in `check_unet`.
    """
    _check_fields(config, TEXT_ENCODER, where)
    _positive(config, where, "hidden_size", "vocab_size")


def check_widths(unet: Config, text_encoder: Config, text_encoder_2: Config, where: str) -> None:
    """Check that the UNet takes the text encoders' outputs and SDXL's six time ids.

    Raises:
        InputError: the components belong to different models.
    """
    text = text_encoder["hidden_size"] + text_encoder_2["hidden_size"]
    if unet["cross_attention_dim"] != text:
        raise InputError(
            f"The UNet of {where} takes prompts of width cross_attention_dim = {unet['cross_attention_dim']}, but its "
            f"text encoders return {text}.",
            fix=_SDXL,
        )
    _positive(text_encoder_2, f"The text_encoder_2 of {where}", "projection_dim")
    conditioning = 6 * unet["addition_time_embed_dim"] + text_encoder_2["projection_dim"]
    if unet["projection_class_embeddings_input_dim"] != conditioning:
        raise InputError(
            f"The UNet of {where} has projection_class_embeddings_input_dim = "
            f"{unet['projection_class_embeddings_input_dim']}; six time ids and the pooled prompt have {conditioning} "
            "(SDXL's refiner has five).",
            fix=_SDXL,
        )


def _check_class(config: Config, wanted: str, where: str) -> None:
    if config.get("_class_name") != wanted:
        raise InputError(f"{where} is of {_shown(config.get('_class_name'))}, not of {wanted}.", fix=_SDXL)


def _check_fields(config: Config, fields: Fields, where: str) -> None:
    """Reject fields with an unsupported value, and unknown fields.

    Names with a leading underscore are the libraries' own bookkeeping.
    """
    for name, needed in fields.needed.items():
        value = config.get(name, needed.absent)
        if not needed.accepts(value):
            wanted = " or ".join(repr(each) for each in needed.allowed)
            raise InputError(
                f"{where} has {name} = {_shortened(value)}; only SDXL's {wanted} is supported"
                f"{': ' if needed.why else ''}{needed.why}.",
                fix=_SDXL if name in config else f"{_SDXL} The field is absent, and this is the library's default.",
            )
    known = {*fields.needed, *fields.applied, *fields.unused}
    unknown = sorted(name for name in config if name not in known and not name.startswith("_"))
    if unknown:
        raise InputError(
            f"{where} has fields that infid-export does not know, and that may change the image: "
            f"{', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}.",
            fix="Remove them if they have no effect, use a checkpoint without them, or update infid-export.",
        )
    for name, value in config.items():
        most = _MOST_LAYERS if name in _LAYERS else _LARGEST
        if name in fields.applied and any(abs(number) > most for number in _numbers(value)):
            raise InputError(f"{where} has {name} = {_shortened(value)}; the most is {most}.", fix=_SDXL)


def _numbers(value: Any) -> Sequence[float]:
    """Return the numbers in a JSON value; NaN counts as infinite."""
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    return [value if value == value else math.inf]


def _positive(config: Config, where: str, *names: str) -> None:
    for name in names:
        value = config.get(name)
        if type(value) is not int or value < 1:
            raise InputError(
                f"{where} has {name} = {_shortened(value)}, which is not a positive whole number.", fix=_SDXL
            )


def _channels(config: Config, where: str) -> None:
    channels = config.get("block_out_channels")
    whole = isinstance(channels, list | tuple) and all(type(each) is int and each > 0 for each in channels)
    if not whole or not channels or len(channels) > 16:
        raise InputError(
            f"{where} has block_out_channels = {_shortened(channels)}, which are not the channels of its levels.",
            fix=_SDXL,
        )


def _nothing(value: Any) -> bool:
    """Return whether an entry of `model_index.json` names no component: null, or [null, null]."""
    return value is None or (isinstance(value, list | tuple) and not any(value))


def _shown(name: Any) -> str:
    return str(name) if isinstance(name, str) else "no class that it names"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
