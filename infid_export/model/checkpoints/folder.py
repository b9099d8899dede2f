"""Reads and checks a checkpoint in diffusers' format without loading weights; every entry point uses it.

Imports are light, so that an unchanged rebuild does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from infid_engines.errors import InputError
from infid_export.model.architectures import SDXL
from infid_export.model.checkpoints.files import read_json, weight_files
from infid_export.model.checkpoints.kind import (
    check_model_index,
    check_scheduler,
    check_text_encoder,
    check_unet,
    check_vae,
    check_widths,
)
from infid_export.model.config import IdentityConfig
from infid_export.model.tokenizers import read_vocabulary
from infid_export.sampling.scheduler_config import ModelSampling, read_scheduler

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_CHECKS = {
    "unet": check_unet,
    "vae": check_vae,
    "text_encoder": check_text_encoder,
    "text_encoder_2": check_text_encoder,
}
# The fields of open_clip's vision configuration that `ImageEncoder` reads; other fields must have their defaults.
_VISION = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size")
# transformers says about `eos_token_id = 2`, as in open_clip: such a model "can't work correctly with extra new
# tokens".
_LEGACY_END = 2


@dataclass(frozen=True)
class Checkpoint:
    """The facts in a checkpoint folder.

    Args:
        parts: configurations of the UNet, the VAE and the text encoders.
        sampling: its noise schedule, and the sampler it asks for.
        zero_negative: whether a missing negative prompt means zero embeddings.
        notes: what was chosen if the checkpoint leaves a choice, and why.
    """

    parts: Mapping[str, dict[str, Any]]
    sampling: ModelSampling
    zero_negative: bool
    notes: tuple[str, ...]


def read_checkpoint(folder: Path, given: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint's configurations, and check that they are SDXL's and match each other.

    Args:
        folder: folder in diffusers' format.
        given: configurations of components, including the scheduler, that replace the folder's.

    Raises:
        InputError: a file is missing or broken, or a field has a value that neither this package nor the libraries
            support; the message names it.
    """
    own = given or {}
    index = read_json(folder / "model_index.json")
    check_model_index(index, f"{folder}/model_index.json", own)
    path = folder / "scheduler" / "scheduler_config.json"
    schedule = own.get("scheduler") or read_json(path, constants=True)
    check_scheduler(schedule, "The given scheduler" if "scheduler" in own else str(path))
    if "scheduler" not in own:
        check_scheduler(schedule, str(path), index["scheduler"][1])
    parts = {name: own.get(name) or read_json(folder / name / "config.json") for name in NETWORKS}
    for name, config in parts.items():
        check_network(name, config, f"The given {name}" if name in own else f"{folder}/{name}/config.json")
    check_widths(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], str(folder))
    sampling = read_scheduler(schedule, None if "scheduler" in own else index["scheduler"][1])
    notes = [sampling.note]
    if not {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"} & own.keys():
        notes.append(_check_vocabularies(folder, parts))
    for name in NETWORKS:
        if name not in own and (variant := weight_files(folder / name).variant) is not None:
            notes.append(f"{name} weights: the variant {variant}, since there are no plain ones")
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return Checkpoint(parts, sampling, zeros, tuple(note for note in notes if note))


def check_network(name: str, config: Mapping[str, Any], where: str) -> None:
    """Check the configuration of a UNet, VAE or text encoder; `where` is its name in the error.

    Raises:
        InputError: a field has an unsupported value, is unknown, or is missing.
    """
    _CHECKS[name](config, where)


def _check_vocabularies(folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Check that each text encoder has exactly one embedding for each word of its tokenizer.

    Returns:
        A note if a learned word changes the pooled embedding; else an empty string.

    Raises:
        InputError: they disagree.
    """
    note = ""
    for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        vocabulary = read_vocabulary(folder / tokenizer)
        rows, end = parts[encoder]["vocab_size"], parts[encoder].get("eos_token_id", vocabulary.end)
        if rows != vocabulary.size:
            raise InputError(
                f"The {encoder} of {folder} has {rows} word embeddings, but its {tokenizer} has "
                f"{vocabulary.size} words: learned words (textual inversion) are missing in one of them.",
                fix=f"Save both from the pipeline that learned them, so that {tokenizer}/ has the words.",
            )
        if end not in (vocabulary.end, _LEGACY_END):
            raise InputError(
                f"{folder}/{encoder}/config.json has eos_token_id = {end!r}, but the tokenizer ends a text with "
                f"{vocabulary.end}.",
                fix=f"Set it to {vocabulary.end}.",
            )
        if encoder == "text_encoder_2" and end == _LEGACY_END and vocabulary.added:
            note = (
                f"learned words: {encoder}/config.json has eos_token_id = 2, with which transformers pools a prompt at "
                f"the learned word instead of at its end; to pool at the end, set it to {vocabulary.end}"
            )
    return note


def check_identity(config: IdentityConfig, vision: Mapping[str, Any] | None, width: int, where: str) -> None:
    """Check that identity modules of this configuration fit the UNet and the image encoder.

    Args:
        config: configuration of the identity modules.
        vision: configuration of the image encoder, see `image_encoder_config`; None if it is not used here.
        width: the UNet's `cross_attention_dim`.
        where: name of the base model, for the error.

    Raises:
        InputError: they belong to another model.
    """
    encoder = f"the image encoder {config.image_encoder}"
    pairs = [("cross_attention_dim", config.cross_attention_dim, width, f"the UNet of {where}")]
    if vision is not None and config.reads_image:
        pooled, side = config.clip_layer == "pooled", vision["image_size"] // vision["patch_size"]
        pairs += [
            ("clip_width", config.clip_width, vision["embed_dim" if pooled else "width"], encoder),
            ("clip_tokens", config.clip_tokens, 1 if pooled else 1 + side**2, encoder),
        ]
    for name, found, needed, what in pairs:
        if found != needed:
            raise InputError(
                f"The identity weights have {name} = {found}, but {what} has {needed}.",
                fix="Use identity weights trained for this base model and image encoder.",
            )


def image_encoder_config(name: str) -> dict[str, Any]:
    """Return the configuration of an image encoder; only unusual ones are read from open_clip.

    Raises:
        InputError: open_clip does not know it, or it is not a plain vision transformer.
    """
    if name == IdentityConfig.image_encoder:
        return SDXL.image_encoder
    import open_clip
    from open_clip.model import CLIPVisionCfg

    config = open_clip.get_model_config(name)
    if config is None:
        raise InputError(f"open_clip has no model named {name}.", fix="Register it with open_clip.add_model_config.")
    vision = config["vision_cfg"]
    defaults = {field.name: field.default for field in fields(CLIPVisionCfg) if field.name not in _VISION}
    other = [field for field, value in vision.items() if field not in _VISION and defaults.get(field) != value]
    other += ["quick_gelu"] if config.get("quick_gelu") else []
    if other or not all(
        isinstance(vision.get(field), int) for field in ("layers", "width", "patch_size", "image_size")
    ):
        raise InputError(
            f"open_clip's {name} is not a plain vision transformer ({', '.join(other) or 'its sizes'}).",
            fix=f"Use identity weights of {IdentityConfig.image_encoder}.",
        )
    return {**vision, "embed_dim": config["embed_dim"]}
