"""Opens a model by name: the package's, random weights, or a checkpoint. Imports are light."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.model.architectures import identity_config
from infid_export.model.changes.updated_source import UpdatedSource
from infid_export.model.checkpoints.file_kind import checkpoint_file
from infid_export.model.checkpoints.files import (
    checkpoint_folder,
    local_folder,
)
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.checkpoints.prediction import AS_STORED, GivenPrediction
from infid_export.model.checkpoints.single_file import SingleFileSource
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity_header import stored_license
from infid_export.model.identity_lora import identity_lora
from infid_export.model.shipped import ShippedSource
from infid_export.model.sources import BUILT_IN, RANDOM, ModelSource, RandomSource


def open_source(
    model: str,
    *,
    identity: Path | None = None,
    image_encoder: str | None = None,
    seed: int = 0,
    choices: Mapping[str, str | int | None] | None = None,
    prediction: GivenPrediction = AS_STORED,
    without: Collection[str] = (),
) -> ModelSource:
    """Open a model by name.

    Args:
        model: `demo`, `random-sdxl`, `random-medium`, a safetensors file in SDXL's original layout, a folder in
            diffusers' format, or a hub id.
        identity: identity weights; needed for a checkpoint, and replace the demo model's own.
        image_encoder: checkpoint of the image encoder, or tag; needed for a checkpoint, unless the identity weights
            read no image.
        seed: seed of random weights.
        choices: method choices that replace the stored ones if they are not None.
        prediction: what a checkpoint's UNet predicts.
        without: networks that a single file may lack, since others replace them: `vae`, `unet`.

    Raises:
        InputError: the model is missing or lacks a component, or a seed was given for trained weights.
    """
    chosen = choices or {}
    if seed and model not in RANDOM:
        raise InputError(f"A seed for random weights has no effect: {model} has trained weights.", fix="Leave it out.")
    if model == "demo":
        shipped = ShippedSource(chosen, identity)
        return _with_lora(shipped, shipped.identity)
    if model in BUILT_IN:
        return RandomSource(model, seed, identity_config(BUILT_IN[model]).with_choices(**chosen))
    if checkpoint_file(model, without) is None:
        local_folder(model)  # an unusable path is reported before missing identity weights
    stored = None if identity is None else read_config(identity)
    if identity is None or stored is None or (image_encoder is None and stored.reads_image):
        raise InputError(
            f"The checkpoint {model} needs identity weights and an image encoder.",
            fix="Give --identity weights.safetensors and --image-encoder open_clip_checkpoint.",
        )
    config = stored.with_choices(**chosen)
    source = open_checkpoint(model, identity, image_encoder, config, prediction, without)
    source.notes, source.license = (*source.notes, *stored.untrained_notes(config)), stored_license(identity)
    return _with_lora(source, identity)


def _with_lora(source: ModelSource, identity: Path) -> ModelSource:
    """Return the source with the identity file's LoRA merged into its weights, if it has one."""
    lora = identity_lora(identity, source.config)
    return source if lora is None else UpdatedSource(source, (lora,))


def open_checkpoint(
    model: str,
    identity: Path,
    image_encoder: str | None,
    config: IdentityConfig,
    prediction: GivenPrediction = AS_STORED,
    without: Collection[str] = (),
) -> CheckpointSource:
    """Open a checkpoint: a single file, a folder in diffusers' format, or a hub id.

    Its class has the same arguments, except for `without` of a folder, which has all networks.

    Raises:
        InputError: it is missing, or is not SDXL.
    """
    if (file := checkpoint_file(model, without)) is not None:
        return SingleFileSource(file, identity, image_encoder, config, prediction, without)
    return CheckpointSource(checkpoint_folder(model), identity, image_encoder, config, prediction)
